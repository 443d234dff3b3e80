"""A cloud with a solver behind it that is right with a given probability."""

import random
from collections.abc import Callable, Sequence

from offload_jax.tasks.parsing import ANSWER_CLOSE, ANSWER_OPEN
from offload_jax.tasks.task import Prompt


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
    ):
        """`right_answer` may return None (unsolvable): the prompt then gets a wrong answer."""
        if not 0 <= accuracy <= 1:
            raise ValueError(f"config.cloud.accuracy = {accuracy} is not between 0 and 1")
        self._right_answer, self._wrong_answer = right_answer, wrong_answer
        self._accuracy, self._seed = accuracy, seed

    def answer(self, prompts: Sequence[Prompt]) -> list[str]:
        """One response per prompt [P]: the answer in its tags."""
        return [f"{ANSWER_OPEN} {self._expression(prompt)} {ANSWER_CLOSE}" for prompt in prompts]

    def _expression(self, prompt: Prompt) -> str:
        # A string seed is hashed by random.Random, so that neighbouring ids are unrelated.
        rng = random.Random(f"oracle/{self._seed}/{prompt.id}")
        answer = self._right_answer(prompt) if rng.random() < self._accuracy else None
        return self._wrong_answer(prompt, rng) if answer is None else answer
