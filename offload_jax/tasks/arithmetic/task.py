"""Arithmetic as a task: template, parsing, verification, examples.

A pretrained device LLM is asked in words, in its own chat template. A small one that is trained
from nothing is asked the bare chain, and works in the vocabulary of `tokenizer`:
`<bos>(23+4)*5=` is answered by `23+4=27,27*5=135<answer>135</answer>`.
"""

import dataclasses
import random
import re
from collections.abc import Sequence
from typing import Literal

from offload_jax.tasks import parsing
from offload_jax.tasks.arithmetic.problems import (
    Problem,
    ProblemConfig,
    apply,
    problems,
    read_chain,
    write_chain,
)
from offload_jax.tasks.arithmetic.tokenizer import BOS, make_vocabulary
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
        vocabulary: Vocabulary | None,
        train: int,
        validation: int,
        test: int,
        seed: int,
        config: ProblemConfig,
    ):
        """Splits are parts of one list of different problems: none is in two of them.

        Args:
            vocabulary: of a pretrained device LLM; None: the task's own.
            train: prompts of a split, as `validation` and `test`.
            validation: see `train`.
            test: see `train`.
            seed: of the problems.
            config: how hard they are.
        """
        self._chat = vocabulary is not None
        self.vocabulary = vocabulary if self._chat else make_vocabulary()
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
        """What a user asks, as it is; without a chat template a chain alone, else ValueError."""
        if not self._chat:
            return _prompt(id_of(question), Problem(*read_chain(question), question))
        return Prompt(id_of(question), _with_form(question), {"question": question})

    def device_text(self, prompt: Prompt) -> str:
        """The conversation in the device LLM's own template, up to its reply; or the bare chain."""
        if not self._chat:
            chain = write_chain(prompt.gold["first"], prompt.gold["steps"])
            return f"{BOS}{_compact(chain)}="
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
        text = self.canonical(answer, prompt)
        return _INTEGER.fullmatch(text) is not None and int(text) == prompt.gold["answer"]

    def canonical(self, answer: str, prompt: Prompt) -> str:
        """Without commas and a last full stop; of what is too long for an integer, nothing."""
        text = answer.strip().rstrip(".")
        return text.replace(",", "") if len(text) <= 64 else ""

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
        texts = [_example(prompt, rng, config) for prompt in prompts]
        return texts if self._chat else list(map(_compact, texts))


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


def _compact(text: str) -> str:
    """Without spaces, and commas between lines; a call's words stay as they are."""
    work, call, rest = text.partition(parsing.CALL_MARKER)
    *lines, last = work.replace(" ", "").split("\n")
    return ",".join(lines) + last + call + rest


def _example(prompt: Prompt, rng: random.Random, config: ExampleConfig) -> str:
    value, lines = prompt.gold["first"], []
    for op, n in prompt.gold["steps"]:
        result = apply(op, value, n)
        lines.append(f"{value} {op} {n} = {result}")
        value = result
    solved = rng.random() < config.solve
    answer = f"{parsing.ANSWER_OPEN}{value}{parsing.ANSWER_CLOSE}"
    return "\n".join([*lines, answer if solved else parsing.CALL_MARKER])
