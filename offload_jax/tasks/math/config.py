"""The settings of mathematics as a task."""

import dataclasses
from typing import Literal

from offload_jax.settings import require
from offload_jax.tasks.math.sources import SOURCES


@dataclasses.dataclass(frozen=True)
class MathConfig:
    """Which problems are asked, and how answers are graded.

    Attributes:
        files: the folder with the published files, `<files>/<data set>/...` (see docs/math.md).
        train: the data set that training and validation prompts are of; None: test prompts only.
        test: the data set that test prompts are of; None: no prompts at all, where users ask.
        validation: how many prompts of the training split are held out.
        seed: of which ones these are.
        help: the system prompt allows a call; the paper's Task-Tuning Only leaves that out.
        workers: processes that grade answers.
        seconds: of a worker's CPU time that grading one answer may take; then it is wrong.
    """

    files: str
    train: str | None = "math_lighteval"
    test: str | None = "math_lighteval"
    validation: int = 500
    seed: int = 0
    help: bool = True
    workers: int = 2
    seconds: float = 3.0

    def __post_init__(self):
        for name, split in (("train", "train"), ("test", "test")):
            dataset = getattr(self, name)
            able = [key for key, source in SOURCES.items() if split in source.splits]
            require(
                dataset in able or dataset is None,
                f"config.task.{name} is {dataset!r}; it must be one of {', '.join(able)}.",
            )
        require(self.validation >= 1, "config.task.validation must be at least 1.")


@dataclasses.dataclass(frozen=True)
class SolutionConfig:
    """Published solutions as examples for a supervised start.

    Attributes:
        solve: share of the examples that are the solution; the others end after its first half
            with a call, whatever the problem: when to call is not taught here.
    """

    kind: Literal["math"] = "math"
    solve: float = 0.7

    def __post_init__(self):
        require(0 <= self.solve <= 1, f"solve is {self.solve}, which is not a share.")
