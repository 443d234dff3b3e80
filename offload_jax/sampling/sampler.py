"""The sampler's thin shell: prompts as text in, a placed batch and its rollout out."""

import dataclasses
from collections.abc import Sequence

import tokenizers
from jax.sharding import Mesh
from jaxtyping import Array, Key

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params
from offload_jax.sampling.rollout import PromptBatch, Rollout, SamplingConfig, rollout
from offload_jax.sampling.text import encode_prompts
from offload_jax.sharding import place
from offload_jax.tasks.task import Prompt, Task
from offload_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Everything that stays the same from rollout to rollout."""

    task: Task
    device: DeviceConfig
    sampling: SamplingConfig
    mesh: Mesh

    @property
    def vocabulary(self) -> Vocabulary:
        """The device LLM's tokens."""
        return self.task.vocabulary

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The device LLM's tokenizer."""
        return self.vocabulary.tokenizer

    def __call__(
        self, params: Params, prompts: Sequence[Prompt], key: Key[Array, ""]
    ) -> tuple[PromptBatch, Rollout]:
        """Samples a group of responses to each prompt; the mesh must be in context."""
        batch = self.encode(prompts)
        return batch, self.respond(params, batch, key)

    def respond(self, params: Params, batch: PromptBatch, key: Key[Array, ""]) -> Rollout:
        """Samples a group of responses to each row of a placed batch, whatever its width."""
        return rollout(
            params,
            batch,
            key,
            config=self.device,
            sampling=self.sampling,
            stops=self.vocabulary.stops,
            pad=self.vocabulary.pad,
        )

    def encode(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """The prompts in the device's template, tokenised and placed on the mesh."""
        texts = [self.task.device_text(prompt) for prompt in prompts]
        ids = [prompt.id for prompt in prompts]
        batch = encode_prompts(self.vocabulary, ids, texts, self.sampling.prompt_tokens)
        return place(self.mesh, batch, "prompts")

    def greedy(self) -> "Sampler":
        """The same sampler for evaluation: one greedy response per prompt."""
        return dataclasses.replace(
            self, sampling=dataclasses.replace(self.sampling, group=1, temperature=0.0)
        )
