"""What goes between the engine that runs the device LLM and the service that answers clients."""

import dataclasses
from collections.abc import AsyncIterator
from typing import Protocol

from offload_jax.tasks.task import Prompt


@dataclasses.dataclass(frozen=True)
class Question:
    """What the device LLM is to attempt.

    Attributes:
        prompt: what is asked; its id is folded into the sampling key.
        temperature: 0 is greedy.
        seed: of the sampling; the same seed, prompt and temperature give the same response.
        max_tokens: of the response; None: as many as the engine allows.
    """

    prompt: Prompt
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What the device LLM did with a question.

    Attributes:
        question: what was asked.
        text: the response; `tokens` are its ids, the stop token included.
        prompt_tokens: of the prompt in the device's template.
        called: the response ends with a call.
        answer: the text of its answer; None if it called or gave none.
        call_probability: at the decision point, as in `evaluation.decision`.
        ended: by a stop token, not by its length.
        waited: seconds in the queue.
        seconds: from the queue's end to the response's end.
    """

    question: Question
    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    called: bool
    answer: str | None
    call_probability: float | None
    ended: bool
    waited: float
    seconds: float


class QueueFullError(Exception):
    """More questions wait than the queue holds; `retry_after` is a guess in whole seconds."""

    def __init__(self, retry_after: int):
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class Ticket(Protocol):
    """A question under way."""

    def __aiter__(self) -> AsyncIterator[str]:
        """The response's text in pieces, as it comes."""

    async def attempt(self) -> Attempt:
        """The whole attempt, when it has ended; raises what ended the engine."""

    def cancel(self) -> None:
        """Gives up the question; its place is free again at the next step."""


class Engine(Protocol):
    """Runs the device LLM for many clients at once."""

    def submit(self, question: Question) -> Ticket:
        """Puts a question into the queue, from the event loop's thread.

        Raises:
            QueueFullError: there is no room.
            ValueError: the prompt has more tokens than the engine takes.
        """

    async def fallback(self, attempt: Attempt) -> Attempt:
        """The same work with an answer in place of its call, as in `evaluation.fallback`.

        Text and tokens are those of the answer alone.
        """
