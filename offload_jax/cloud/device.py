"""A second, larger LLM on our own sampler as the cloud: no network, greedy, hence deterministic."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Literal

import jax
from jax.sharding import Mesh

from offload_jax.cloud.protocol import Answer
from offload_jax.device.config import DeviceConfig, Dtype
from offload_jax.pretrained.checkpoint import Pretrained
from offload_jax.processes import fetch
from offload_jax.sampling.rollout import SamplingConfig, rollout
from offload_jax.sampling.text import decode_responses, encode_prompts
from offload_jax.settings import parse, require
from offload_jax.sharding import place, prompt_shards
from offload_jax.tasks.task import Prompt


@dataclasses.dataclass(frozen=True)
class DeviceCloudConfig:
    """A checkpoint that answers.

    Attributes:
        pretrained: a Hugging Face folder or a GGUF file, with a chat template.
        prompt_tokens: the longest question in that template.
        response_tokens: the longest answer.
        batch: questions decoded at once.
        dtype: of weights and activations.
    """

    kind: Literal["device"]
    pretrained: str
    prompt_tokens: int = 512
    response_tokens: int = 512
    batch: int = 32
    dtype: Dtype = "float32"

    def __post_init__(self):
        for name in ("prompt_tokens", "response_tokens", "batch"):
            value = getattr(self, name)
            require(value >= 1, f"config.cloud.{name} is {value}; it must be at least 1.")


class DeviceCloud:
    """A checkpoint on the mesh."""

    def __init__(self, config: DeviceCloudConfig, mesh: Mesh):
        """Loads the weights. Raises ValueError where the checkpoint does not fit."""
        pretrained = Pretrained(config.pretrained)
        dtypes = {"param_dtype": config.dtype, "compute_dtype": config.dtype}
        self._model = parse(DeviceConfig, {**pretrained.shape(), **dtypes}, "config.cloud")
        tokens, context = config.prompt_tokens + config.response_tokens, self._model.context
        require(
            context is None or tokens <= context,
            f"config.cloud.prompt_tokens + response_tokens is {tokens}; the context of"
            f" {config.pretrained} has {context}.",
        )
        self.config, self._mesh, self._vocabulary = config, mesh, pretrained.vocabulary()
        self._vocabulary.render([{"role": "user", "content": "?"}])  # raises without a template
        self._params = pretrained.params(self._model, jax.random.key(0), mesh)
        self._answers: dict[str, Answer] = {}

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt; each question is decoded once.

        Raises:
            ValueError: a question is longer than config.cloud.prompt_tokens.
        """
        known = self._answers.keys()
        new = list(dict.fromkeys(p.question for p in prompts if p.question not in known))
        shards = prompt_shards(self._mesh)
        batch = -(-self.config.batch // shards) * shards
        for first in range(0, len(new), batch):
            self._decode(new[first : first + batch], batch)
        fresh = set(new)
        return [
            dataclasses.replace(self._answers[p.question], cached=p.question not in fresh)
            for p in prompts
        ]

    def close(self) -> None:
        """Nothing is ever under way."""

    def _decode(self, questions: Sequence[str], batch: int) -> None:
        began = time.perf_counter()
        filled = [*questions, *[questions[-1]] * (batch - len(questions))]
        texts = [self._vocabulary.render([{"role": "user", "content": q}]) for q in filled]
        S, T = self.config.prompt_tokens, self.config.response_tokens
        for text, question in zip(texts, questions, strict=False):
            length = len(self._vocabulary.encode(text))
            require(
                length <= S,
                f"config.cloud.prompt_tokens is {S}; a question has {length}: {question[:60]!r}.",
            )
        encoded = encode_prompts(self._vocabulary, range(batch), texts, S)
        with jax.set_mesh(self._mesh):  # whoever asks may do so from another thread
            rolled = rollout(
                self._params,
                place(self._mesh, encoded, "prompts"),
                jax.random.key(0),  # at temperature 0 no key is read
                config=self._model,
                sampling=SamplingConfig(1, S, T, temperature=0.0),
                stops=self._vocabulary.stops,
                pad=self._vocabulary.pad,
            )
        rolled = fetch(rolled)
        responses = decode_responses(self._vocabulary.tokenizer, rolled)
        seconds = (time.perf_counter() - began) / len(questions)
        for i, question in enumerate(questions):
            self._answers[question] = Answer(
                responses[i][0],
                prompt_tokens=int(encoded.lengths[i]),
                tokens=int(rolled.lengths[i, 0]),
                seconds=seconds,
            )
