"""A cloud that answers from a ledger's cache alone: no network, no key, no cost."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from offload_jax.cloud.ledger import Ledger, question_key
from offload_jax.cloud.protocol import Answer, CloudError
from offload_jax.cloud.request import chat_request
from offload_jax.settings import require
from offload_jax.tasks.task import Prompt


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """Which cache: the fields of `OpenAIConfig` that answers depend on.

    Attributes:
        ledger: the SQLite file.
    """

    kind: Literal["replay"]
    model: str
    ledger: str
    base_url: str = "https://api.openai.com/v1"
    max_tokens: int = 4096
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float | None = 0.0


class Replay:
    """The answers of an earlier run."""

    def __init__(self, config: ReplayConfig):
        """Raises ValueError where there is no ledger."""
        require(Path(config.ledger).is_file(), f"config.cloud.ledger: {config.ledger} is missing.")
        self.config, self._ledger = config, Ledger(config.ledger, "replay")

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt. Raises CloudError where the cache lacks one."""
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: Prompt) -> Answer:
        request = chat_request(self.config, prompt.question)
        cached = self._ledger.cached(question_key(request))
        if cached is None:
            raise CloudError(
                f"{self.config.ledger} has no answer of {self.config.model!r} to prompt"
                f" {prompt.id}: {prompt.question[:80]!r}. A replay asks nobody."
            )
        return Answer(**cached, cached=True)
