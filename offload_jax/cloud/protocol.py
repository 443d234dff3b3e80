"""What the cloud is to everything else: it answers prompts."""

from collections.abc import Sequence
from typing import Protocol

from offload_jax.tasks.task import Prompt


class Cloud(Protocol):
    """A fixed policy that is asked when a response calls."""

    def answer(self, prompts: Sequence[Prompt]) -> list[str]:
        """One full response text per prompt; deterministic per prompt, whatever the batch."""
