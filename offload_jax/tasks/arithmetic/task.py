"""Arithmetic as a task for a pretrained device LLM: template, parsing, verification, examples."""

import dataclasses
import random
import re
from collections.abc import Sequence
from typing import Literal

from offload_jax.tasks import parsing
from offload_jax.tasks.arithmetic.problems import Problem, ProblemConfig, apply, problems
from offload_jax.tasks.task import Parsed, Prompt, id_of
from offload_jax.vocabulary import Vocabulary

SYSTEM = (
    f"Calculate step by step and end with {parsing.ANSWER_OPEN}number{parsing.ANSWER_CLOSE}. If"
    f" unsure, end with {parsing.CALL_MARKER} instead."
)
_INTEGER = re.compile(r"-?\d{1,12}", re.ASCII)


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
    """Worked examples for a supervised start.

    Attributes:
        solve: share of the examples that end with the answer; the others do the same work and end
            with a call, whatever the problem: when to call is not taught here.
    """

    kind: Literal["arithmetic"] = "arithmetic"
    solve: float = 0.7

    def __post_init__(self):
        if not 0 <= self.solve <= 1:
            raise ValueError(f"solve is {self.solve}, which is not a share.")


class ArithmeticTask:
    """Chains of operations, bare or as stories, answered by an integer."""

    name = "arithmetic"
    openings = (parsing.CALL_OPEN, parsing.ANSWER_OPEN)
    answer_form = parsing.ANSWER_FORM

    def __init__(
        self,
        vocabulary: Vocabulary,
        train: int,
        validation: int,
        test: int,
        seed: int,
        config: ProblemConfig,
    ):
        """Splits are parts of one list of different problems: none is in two of them."""
        self.vocabulary = vocabulary
        sizes = {"test": test, "validation": validation, "train": train}
        drawn = problems(config, sum(sizes.values()), seed)
        prompts = [_prompt(i, problem) for i, problem in enumerate(drawn)]
        self._splits: dict[str, list[Prompt]] = {}
        for split, size in sizes.items():
            self._splits[split], prompts = prompts[:size], prompts[size:]

    def prompts(self, split: str) -> Sequence[Prompt]:
        """Prompts of a split; ValueError for an unknown split."""
        if split not in self._splits:
            raise ValueError(f"split {split!r} is not one of {', '.join(self._splits)}")
        return self._splits[split]

    def asked(self, question: str) -> Prompt:
        """What a user asks, as it is."""
        return Prompt(id_of(question), _with_form(question), {"question": question})

    def device_text(self, prompt: Prompt) -> str:
        """The conversation in the device LLM's own template, up to its reply."""
        return self.vocabulary.render(
            [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": prompt.gold["question"]},
            ]
        )

    def parse(self, text: str) -> Parsed:
        """The decision in a response; never raises."""
        return parsing.parse(text)

    def verify(self, answer: str, prompt: Prompt) -> bool:
        """Whether an untrusted answer is the integer; thousands may be parted by commas."""
        text = answer[:64].strip().rstrip(".").replace(",", "")
        return _INTEGER.fullmatch(text) is not None and int(text) == prompt.gold["answer"]

    def right_answer(self, prompt: Prompt) -> str:
        """The integer."""
        return str(prompt.gold["answer"])

    def wrong_answer(self, prompt: Prompt, rng: random.Random) -> str:
        """A near miss."""
        return str(prompt.gold["answer"] + rng.choice((-10, -2, -1, 1, 2, 10)))

    def examples(
        self, prompts: Sequence[Prompt], rng: random.Random, config: ExampleConfig
    ) -> list[str]:
        """A worked response to each prompt."""
        return [_example(prompt, rng, config) for prompt in prompts]


def _prompt(id: int, problem: Problem) -> Prompt:
    """The question says how to answer, as the cloud has no system prompt."""
    gold = {
        "question": problem.question,
        "answer": problem.values()[-1],
        "first": problem.first,
        "steps": [list(step) for step in problem.steps],
    }
    return Prompt(id, _with_form(problem.question), gold)


def _with_form(question: str) -> str:
    return f"{question} Put the result in {parsing.ANSWER_OPEN} {parsing.ANSWER_CLOSE}."


def _example(prompt: Prompt, rng: random.Random, config: ExampleConfig) -> str:
    value, lines = prompt.gold["first"], []
    for op, n in prompt.gold["steps"]:
        result = apply(op, value, n)
        lines.append(f"{value} {op} {n} = {result}")
        value = result
    solved = rng.random() < config.solve
    answer = f"{parsing.ANSWER_OPEN}{value}{parsing.ANSWER_CLOSE}"
    return "\n".join([*lines, answer if solved else parsing.CALL_MARKER])
