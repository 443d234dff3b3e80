"""A cloud that answers from a ledger's cache alone: no network, no key, no cost."""

import dataclasses
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from offload_jax.cloud.ledger import cached_answer, open_read_only, question_key
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
        self.config = config
        path = config.ledger
        require(Path(path).is_file(), f"config.cloud.ledger: {path} is missing.")
        try:
            with closing(open_read_only(path)) as db:
                cached_answer(db, "")
        except sqlite3.Error as error:
            raise ValueError(f"{path} cannot be used as a ledger: {error}.") from None

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt. Raises CloudError where the cache lacks one."""
        # Opened anew each time: another run may have begun to write to it.
        with closing(open_read_only(self.config.ledger)) as db:
            return [self._one(db, prompt) for prompt in prompts]

    def close(self) -> None:
        """Nothing is ever under way."""

    def _one(self, db: sqlite3.Connection, prompt: Prompt) -> Answer:
        request = chat_request(self.config, prompt.question)
        cached = cached_answer(db, question_key(request))
        if cached is None:
            raise CloudError(
                f"{self.config.ledger} has no answer of {self.config.model!r} to prompt"
                f" {prompt.id}: {prompt.question[:80]!r}. A replay asks nobody."
            )
        return Answer(**cached, cached=True)
