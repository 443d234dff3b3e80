"""The Countdown dataset as a TFDS builder: generated, no download, no TensorFlow."""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from offload_jax.tasks import building
from offload_jax.tasks.countdown import solver

SPLITS = ("train", "validation", "test")
_STALLED = 50_000  # draws in a row without a new problem


@dataclasses.dataclass(eq=False, kw_only=True)
class CountdownConfig(tfds.core.BuilderConfig):
    """Which problems there are; the name is made of all the values, so that no cache is ever stale.

    Attributes:
        train, validation, test: prompts per split.
        four: share of prompts with 4 numbers; the others have 3.
        numbers, targets: inclusive ranges.
        seed: of the problems drawn.
    """

    name: str = dataclasses.field(default="", init=False)
    train: int = 8000
    validation: int = 500
    test: int = 2000
    four: float = 0.3
    numbers: tuple[int, int] = (1, 25)
    targets: tuple[int, int] = (10, 99)
    seed: int = 0

    def __post_init__(self):
        for split in SPLITS:
            if getattr(self, split) < 1:
                raise ValueError(f"config.task.{split} = {getattr(self, split)} is not positive")
        if not 0 <= self.four <= 1:
            raise ValueError(f"config.task.four = {self.four} is not a share between 0 and 1")
        for name in ("numbers", "targets"):
            low, high = getattr(self, name)
            if not solver.MIN_RESULT <= low <= high <= solver.MAX_RESULT:
                raise ValueError(
                    f"config.task.{name} = ({low}, {high}) is not a range within "
                    f"{solver.MIN_RESULT}-{solver.MAX_RESULT}"
                )
        self.name = (
            f"train{self.train}-validation{self.validation}-test{self.test}-four{self.four}"
            f"-numbers{self.numbers[0]}to{self.numbers[1]}"
            f"-targets{self.targets[0]}to{self.targets[1]}-seed{self.seed}"
        )


class Countdown(tfds.core.GeneratorBasedBuilder):
    """Numbers, and a target that a combination of all of them reaches.

    Splits are free of duplicates and disjoint as (multiset of numbers, target).
    """

    VERSION = tfds.core.Version("1.1.0")
    # Only used to find the checksums of downloads, of which there are none; finding it would import
    # a package that TFDS does not depend on.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Reach a target from 3 or 4 numbers with + - * /, each used at most once.",
            features=tfds.features.FeaturesDict(
                {
                    "id": np.int32,
                    "numbers": tfds.features.Sequence(np.int32),
                    "target": np.int32,
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        problems = draw_problems(self.builder_config)
        first_ids = np.cumsum([0, *(len(problems[split]) for split in SPLITS)])
        return {
            split: self._generate_examples(problems[split], int(first))
            for split, first in zip(SPLITS, first_ids, strict=False)
        }

    def _generate_examples(self, problems, first_id: int) -> Iterator[tuple[int, dict]]:
        for i, (numbers, target) in enumerate(problems, start=first_id):
            yield i, {"id": i, "numbers": np.array(numbers, np.int32), "target": target}


def draw_problems(config: CountdownConfig) -> dict[str, list[tuple[tuple[int, ...], int]]]:
    """Distinct solvable (sorted numbers, target) per split; the same for the same config.

    All splits are drawn as one set and dealt out at random, so that none has the rarer problems.

    Raises:
        ValueError: when the ranges hold too few distinct problems for the sizes.
    """
    rng = random.Random(config.seed)
    sizes = {split: getattr(config, split) for split in SPLITS}
    fours = {split: round(config.four * size) for split, size in sizes.items()}
    with_four = _draw_distinct(4, sum(fours.values()), config, rng)
    with_three = _draw_distinct(3, sum(sizes.values()) - sum(fours.values()), config, rng)
    problems = {}
    for split in SPLITS:
        dealt = [with_four.pop() for _ in range(fours[split])]
        dealt += [with_three.pop() for _ in range(sizes[split] - fours[split])]
        rng.shuffle(dealt)
        problems[split] = dealt
    return problems


def _draw_distinct(n: int, count: int, config: CountdownConfig, rng: random.Random) -> list:
    """`count` distinct problems of n numbers in random order.

    The target is uniform over what a combination of all the numbers reaches; drawing a random
    combination instead would favour targets that many combinations reach. A target that is one of
    the numbers is left out: writing that number down would solve it.
    """
    problems, stalled = {}, 0
    while len(problems) < count:
        numbers = tuple(sorted(rng.randint(*config.numbers) for _ in range(n)))
        low, high = config.targets
        targets = [t for t in solver.reachable(numbers) if low <= t <= high and t not in numbers]
        known = len(problems)
        if targets:
            problems[numbers, rng.choice(targets)] = None
        stalled = stalled + 1 if len(problems) == known else 0
        if stalled > _STALLED:
            raise ValueError(
                f"config.task.train + validation + test asks for {count} problems of {n} numbers, "
                f"but config.task.numbers and config.task.targets give only about {known}"
            )
    drawn = list(problems)
    rng.shuffle(drawn)
    return drawn


def build(config: CountdownConfig, data_dir: str | Path) -> Countdown:
    """Builds the dataset under `data_dir` unless it is there, and returns its builder."""
    return building.build(Countdown, config, data_dir)
