"""The sampler's thin shell: prompts as text in, a placed batch and its rollout out."""

import dataclasses
from collections.abc import Sequence

import tokenizers
from jax.sharding import Mesh
from jaxtyping import Array, Key

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params
from offload_jax.sampling.rollout import PromptBatch, Rollout, SamplingConfig, rollout
from offload_jax.sampling.text import encode_prompts, special_ids
from offload_jax.sharding import place
from offload_jax.tasks.task import Prompt, Task


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Everything that stays the same from rollout to rollout."""

    task: Task
    device: DeviceConfig
    sampling: SamplingConfig
    mesh: Mesh

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The task's tokenizer."""
        return self.task.tokenizer

    def __call__(
        self, params: Params, prompts: Sequence[Prompt], key: Key[Array, ""]
    ) -> tuple[PromptBatch, Rollout]:
        """Samples a group of responses to each prompt; the mesh must be in context."""
        pad, stop = special_ids(self.tokenizer)
        batch = self.encode(prompts)
        responses = rollout(
            params, batch, key, config=self.device, sampling=self.sampling, stop=stop, pad=pad
        )
        return batch, responses

    def encode(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """The prompts in the device's template, tokenised and placed on the mesh."""
        texts = [self.task.device_text(prompt) for prompt in prompts]
        ids = [prompt.id for prompt in prompts]
        batch = encode_prompts(self.tokenizer, ids, texts, self.sampling.prompt_tokens)
        return place(self.mesh, batch, "prompts")

    def greedy(self) -> "Sampler":
        """The same sampler for evaluation: one greedy response per prompt."""
        return dataclasses.replace(
            self, sampling=dataclasses.replace(self.sampling, group=1, temperature=0.0)
        )
