"""Mathematics as a task for a pretrained device LLM: prompts, parsing, grading, examples."""

import functools
import random
from collections.abc import Sequence
from pathlib import Path

from offload_jax.settings import require
from offload_jax.tasks import parsing, prompts
from offload_jax.tasks.math import answers, builder
from offload_jax.tasks.math.config import MathConfig, SolutionConfig
from offload_jax.tasks.math.grading import canonical, shared_grader
from offload_jax.tasks.math.sources import Problem, find, fingerprint
from offload_jax.tasks.task import Parsed, Prompt, id_of
from offload_jax.vocabulary import Vocabulary

SPLITS = ("train", "validation", "test")
_FIRST_TEST_ID = 1_000_000  # whatever the training prompts, a test prompt keeps its id


class MathTask:
    """Problems in words and LaTeX whose answer is compared with the published one."""

    name = "math"
    openings = (parsing.CALL_OPEN, answers.BOX)
    answer_form = "\\boxed{{{}}}"

    def __init__(self, data_dir: str | Path, vocabulary: Vocabulary, config: MathConfig):
        """The data is built under `data_dir` when first read.

        Raises:
            ValueError: a file is missing, or a package.
        """
        self.vocabulary, self.config, self._data_dir = vocabulary, config, data_dir
        self._grader = shared_grader(config.workers, config.seconds)
        for split, dataset in (("train", config.train), ("test", config.test)):
            if dataset is not None:
                find(dataset, split, config.files)

    def prompts(self, split: str) -> Sequence[Prompt]:
        """Prompts of a split; ValueError for an unknown split."""
        require(split in SPLITS, f"split {split!r} is not one of {', '.join(SPLITS)}")
        return self._test if split == "test" else self._trained[split]

    def asked(self, question: str) -> Prompt:
        """What a user asks, as it is."""
        return Prompt(id_of(question), _with_form(question), {"problem": question})

    @functools.cached_property
    def _test(self) -> list[Prompt]:
        config = self.config
        require(config.test is not None, "config.task.test is None: there are no prompts.")
        rows = builder.load(config.test, "test", config.files, self._data_dir)
        return [_prompt(id, row, config.test) for id, row in enumerate(rows, _FIRST_TEST_ID)]

    @functools.cached_property
    def _trained(self) -> dict[str, list[Prompt]]:
        """Training and validation prompts; ids are the rows of the training split."""
        config, training = self.config, self._training
        marks = [fingerprint(problem.question) for problem in training]
        first = {mark: id for id, mark in reversed(list(enumerate(marks)))}
        tested = {fingerprint(prompt.gold["problem"]) for prompt in self._test}
        kept = sorted(id for mark, id in first.items() if mark not in tested)
        print(
            f"{config.train}, train: {len(marks) - len(first):,} problems repeat another,"
            f" {len(first) - len(kept):,} a test problem of {config.test}; they are left out."
        )
        require(
            len(kept) > config.validation,
            f"config.task.validation is {config.validation}; {config.train} has {len(kept)}"
            " problems to train with.",
        )
        held_out = set(random.Random(f"math/{config.seed}").sample(kept, config.validation))
        rows = [(id, _prompt(id, training[id], config.train)) for id in kept]
        return {
            "train": [prompt for id, prompt in rows if id not in held_out],
            "validation": [prompt for id, prompt in rows if id in held_out],
        }

    @functools.cached_property
    def _training(self) -> list[Problem]:
        return builder.load(self.config.train, "train", self.config.files, self._data_dir)

    def device_text(self, prompt: Prompt) -> str:
        """The conversation in the device LLM's own template, up to its reply."""
        system = prompts.MATH_SYSTEM + (prompts.MATH_HELP if self.config.help else "")
        return self.vocabulary.render(
            [
                {"role": "system", "content": system},
                {"role": "user", "content": prompt.gold["problem"]},
            ]
        )

    def parse(self, text: str) -> Parsed:
        """The decision in a response; never raises."""
        return answers.parse(text)

    def verify(self, answer: str, prompt: Prompt) -> bool:
        """Whether an untrusted answer is equivalent to the gold one."""
        return self.verify_all([(answer, prompt)])[0]

    def verify_all(self, pairs: Sequence[tuple[str, Prompt]]) -> list[bool]:
        """The same for many at once, by all workers."""
        return self._grader.grade([(answer, prompt.gold["answer"]) for answer, prompt in pairs])

    def canonical(self, answer: str, prompt: Prompt) -> str:
        """A number as a number, all else as text without layout: no algebra."""
        return canonical(answer)

    def right_answer(self, prompt: Prompt) -> str:
        """The gold answer."""
        return prompt.gold["answer"]

    def wrong_answer(self, prompt: Prompt, rng: random.Random) -> str:
        """An answer that no gold answer of the data sets is equivalent to."""
        return str(1_000_003 + rng.randrange(1_000_000))

    def examples(
        self, prompts: Sequence[Prompt], rng: random.Random, config: SolutionConfig
    ) -> list[str]:
        """The published solution of each prompt, or its first half and a call."""
        return [_example(self._training[prompt.id].solution, rng, config) for prompt in prompts]


def _prompt(id: int, problem: Problem, dataset: str) -> Prompt:
    """The question says how to answer, as the cloud has no system prompt."""
    gold = {"problem": problem.question, "answer": problem.answer, "dataset": dataset}
    return Prompt(id, _with_form(problem.question), gold)


def _with_form(question: str) -> str:
    return f"{question}\n\n{prompts.MATH_CLOUD}"


def _example(solution: str, rng: random.Random, config: SolutionConfig) -> str:
    if rng.random() < config.solve:
        return solution
    words = solution.split(" ")
    return f"{' '.join(words[: len(words) // 2])}\n{parsing.CALL_MARKER}"
