"""The types every task shares: what is asked, and what was found in a response."""

import dataclasses
import enum
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from offload_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One question.

    Attributes:
        id: unique over all splits of the task, 0 <= id < 2**31; folded into the sampling keys.
        question: the question in words, which is what the cloud is asked.
        gold: what the verifier needs, e.g. `{"numbers": (3, 7, 25), "target": 46}`.
    """

    id: int
    question: str
    gold: Mapping[str, Any]


class Kind(enum.IntEnum):
    """What a response ends with."""

    NEITHER = 0
    ANSWER = 1
    CALL = 2


@dataclasses.dataclass(frozen=True)
class Parsed:
    """The decision found in a response.

    Attributes:
        kind: an answer, a call, or neither.
        answer: the text of the answer; None unless `kind` is ANSWER.
        formatted: the response follows the template exactly (the format reward of v1).
        at: the character at which the answer or call begins; None if there is neither.
    """

    kind: Kind
    answer: str | None
    formatted: bool
    at: int | None = None


class Task(Protocol):
    """What is asked and how responses are read and judged."""

    name: str
    vocabulary: Vocabulary  # of the device LLM that is asked
    openings: tuple[str, str]  # how a call and how an answer begins
    answer_form: str  # an answer in full, which stands in place of `{}`

    def prompts(self, split: str) -> Sequence[Prompt]:
        """Prompts of "train", "validation" or "test": random access, read lazily."""

    def asked(self, question: str) -> Prompt:
        """What a user asks, as a prompt without gold answer.

        Raises:
            ValueError: it is nothing that the task's policies were trained on; the message says so
                to the user.
        """

    def device_text(self, prompt: Prompt) -> str:
        """The prompt in the device's template; the response is what follows it."""

    def parse(self, text: str) -> Parsed:
        """Finds the decision in the text of a response. Never raises."""

    def examples(self, prompts: Sequence[Prompt], rng: random.Random, config: Any) -> list[str]:
        """Responses to imitate in a supervised start, one per prompt; `config.start.traces`.

        A task may have an attribute `lessons`: the prompts to teach, in place of those of "train".
        """

    def verify(self, answer: str, prompt: Prompt) -> bool:
        """Whether an (untrusted) answer is right. Never raises.

        Where that is slow, `verify_all` takes (answer, prompt) pairs and gives a list.
        """

    def canonical(self, answer: str, prompt: Prompt) -> str:
        """An (untrusted) answer in a form that is equal for answers that mean the same.

        Self-consistency counts those. It knows no gold answer. Never raises.
        """


def id_of(question: str) -> int:
    """An id for a prompt that is of no split: the same question has the same one."""
    digest = hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") % 2**31
