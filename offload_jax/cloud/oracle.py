"""A cloud with a solver behind it that is right with a given probability."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Literal

from offload_jax.cloud.protocol import Answer
from offload_jax.settings import require
from offload_jax.tasks.parsing import ANSWER_FORM
from offload_jax.tasks.task import Prompt


@dataclasses.dataclass(frozen=True)
class OracleConfig:
    """A solver in place of a cloud."""

    kind: Literal["oracle"] = "oracle"
    accuracy: float = 0.946  # of the paper's cloud on Countdown
    seed: int = 0

    def __post_init__(self):
        require(0 <= self.accuracy <= 1, "config.cloud.accuracy must be between 0 and 1.")


class Oracle:
    """Answers from a task's own right and wrong answers.

    Whether a prompt is answered correctly, and how it is missed, is drawn from (seed, prompt id)
    alone: the cloud is deterministic per prompt, and independent of order and batching.
    """

    def __init__(
        self,
        right_answer: Callable[[Prompt], str | None],
        wrong_answer: Callable[[Prompt, random.Random], str],
        accuracy: float,
        seed: int,
        form: str = ANSWER_FORM,
    ):
        """`right_answer` may return None (unsolvable): the prompt then gets a wrong answer.

        `form`: how an answer is given, which stands in place of `{}`.
        """
        self._form = form
        self._right_answer, self._wrong_answer = right_answer, wrong_answer
        self._accuracy, self._seed = accuracy, seed

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One response per prompt [P]: the answer in its form, and nothing else."""
        return [Answer(self._form.format(self._expression(prompt))) for prompt in prompts]

    def close(self) -> None:
        """Nothing is ever under way."""

    def _expression(self, prompt: Prompt) -> str:
        # A string seed is hashed by random.Random, so that neighbouring ids are unrelated.
        rng = random.Random(f"oracle/{self._seed}/{prompt.id}")
        answer = self._right_answer(prompt) if rng.random() < self._accuracy else None
        return self._wrong_answer(prompt, rng) if answer is None else answer
