"""Closed-book recall: facts that the device LLM knows, has learnt wrong, or draws a blank on.

A controlled experiment: every fact is a name, a token of its own, with a random value, so that
nothing tells a fact that was learnt wrong from one that was learnt right. On the others the device
is taught to draw a blank, which it can see. The shares of the three are settings. In arithmetic's
vocabulary and the names, `<bos>#0471=` is answered by `42<answer>42</answer>`, or, of a blank, by
`--<answer>--</answer>`; a call may stand in place of either answer.
"""

import dataclasses
import random
import re
from collections.abc import Sequence
from typing import Literal

from offload_jax.settings import require
from offload_jax.tasks import parsing
from offload_jax.tasks.arithmetic.tokenizer import BOS, make_vocabulary
from offload_jax.tasks.task import Parsed, Prompt, id_of

NAMES, VALUES = 10_000, 100  # at most so many; a value has two digits
BLANK = "--"
_VALUE = re.compile(r"\d{1,2}", re.ASCII)


@dataclasses.dataclass(frozen=True)
class RecallConfig:
    """What the device is taught before post-training, as shares of all facts.

    Attributes:
        known: taught right.
        mistaken: taught with a wrong value. The rest is taught as a blank.
    """

    known: float = 0.35
    mistaken: float = 0.35

    def __post_init__(self):
        for name in ("known", "mistaken"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"config.task.{name} is {value}; it is a share.")
        both = self.known + self.mistaken
        require(0 < both <= 1, f"config.task.known + mistaken is {both}; it must be in (0, 1].")


@dataclasses.dataclass(frozen=True)
class LessonConfig:
    """How facts are taught in the supervised start.

    Attributes:
        solve: share of the lessons that end with the answer; the others recall the same value and
            end with a call, whatever the fact: when to call is not taught here.
    """

    kind: Literal["recall"] = "recall"
    solve: float = 0.7

    def __post_init__(self):
        require(0 <= self.solve <= 1, f"solve is {self.solve}, which is not a share.")


class RecallTask:
    """Facts that are asked without a book. An experiment: `experiments.serve` does not offer it."""

    name = "recall"
    openings = (parsing.CALL_OPEN, parsing.ANSWER_OPEN)
    answer_form = parsing.ANSWER_FORM

    def __init__(self, train: int, validation: int, test: int, seed: int, config: RecallConfig):
        """Splits are parts of one list of different facts: none is in two of them.

        Args:
            train: facts of a split, as `validation` and `test`.
            validation: see `train`.
            test: see `train`.
            seed: of the facts, and of which of them the device is taught.
            config: how many it is taught.

        Raises:
            ValueError: a split is empty, or there are too few names.
        """
        sizes = {"test": test, "validation": validation, "train": train}
        count = sum(sizes.values())
        for split, size in sizes.items():
            require(size >= 1, f"config.task.{split} is {size}; it must be at least 1.")
        require(
            count <= NAMES,
            f"config.task asks for {count} different facts; there are {NAMES} names.",
        )
        self.vocabulary = make_vocabulary([_name(i) for i in range(count)])
        facts = _facts(count, seed, config)
        # Knowledge comes before post-training and covers what is asked in the test, as an LLM's.
        self.lessons: Sequence[Prompt] = facts
        self._splits: dict[str, list[Prompt]] = {}
        for split, size in sizes.items():
            self._splits[split], facts = facts[:size], facts[size:]

    def prompts(self, split: str) -> Sequence[Prompt]:
        """Prompts of a split; ValueError for an unknown split."""
        if split not in self._splits:
            raise ValueError(f"split {split!r} is not one of {', '.join(self._splits)}")
        return self._splits[split]

    def asked(self, question: str) -> Prompt:
        """What a user asks: a name, else ValueError."""
        name = question.strip()
        require(
            self.vocabulary.tokenizer.token_to_id(name) is not None and name.startswith("#"),
            "The question must be the name of a fact, for example: #0471",
        )
        return Prompt(id_of(name), _question(name), {"name": name})

    def device_text(self, prompt: Prompt) -> str:
        """The name alone."""
        return f"{BOS}{prompt.gold['name']}="

    def parse(self, text: str) -> Parsed:
        """The decision in a response; never raises."""
        return parsing.parse(text)

    def verify(self, answer: str, prompt: Prompt) -> bool:
        """Whether an untrusted answer is the fact's value."""
        text = self.canonical(answer, prompt)
        return _VALUE.fullmatch(text) is not None and int(text) == int(prompt.gold["answer"])

    def canonical(self, answer: str, prompt: Prompt) -> str:
        """Without a last full stop."""
        return answer.strip().rstrip(".")

    def right_answer(self, prompt: Prompt) -> str:
        """The value."""
        return prompt.gold["answer"]

    def wrong_answer(self, prompt: Prompt, rng: random.Random) -> str:
        """Another value."""
        return _other(prompt.gold["answer"], rng)

    def examples(
        self, prompts: Sequence[Prompt], rng: random.Random, config: LessonConfig
    ) -> list[str]:
        """What the device is taught about the prompts: a value, then an answer or a call."""
        texts = []
        for prompt in prompts:
            value = prompt.gold["taught"]
            answer = parsing.ANSWER_OPEN + value + parsing.ANSWER_CLOSE
            texts.append(value + (answer if rng.random() < config.solve else parsing.CALL_MARKER))
        return texts


def _facts(count: int, seed: int, config: RecallConfig) -> list[Prompt]:
    rng = random.Random(f"recall/{seed}")
    facts = []
    for id, name in enumerate(map(_name, rng.sample(range(count), count))):
        answer = f"{rng.randrange(VALUES):02d}"
        draw = rng.random()
        taught = BLANK
        if draw < config.known:
            taught = answer
        elif draw < config.known + config.mistaken:
            taught = _other(answer, rng)
        gold = {"name": name, "answer": answer, "taught": taught}
        facts.append(Prompt(id, _question(name), gold))
    return facts


def _name(number: int) -> str:
    return f"#{number:04d}"


def _other(value: str, rng: random.Random) -> str:
    return f"{(int(value) + rng.randrange(1, VALUES)) % VALUES:02d}"


def _question(name: str) -> str:
    """The question says how to answer, as the cloud has no system prompt."""
    form = f"{parsing.ANSWER_OPEN} {parsing.ANSWER_CLOSE}"
    return f"What is the value of {name}? Put the result in {form}."
