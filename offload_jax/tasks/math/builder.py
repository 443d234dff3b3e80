"""Published mathematical problems as TFDS data sets, built from files that the user has."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from offload_jax.tasks import building
from offload_jax.tasks.math.sources import SOURCES, Problem, find, fingerprint, read_problems


@dataclasses.dataclass(eq=False, kw_only=True)
class ProblemsConfig(tfds.core.BuilderConfig):
    """One split of one data set; the name has a digest of its file, so that no cache is stale.

    Attributes:
        dataset: a key of `SOURCES`.
        split: one of its splits.
        file: where it lies in the manual directory.
        sha256: of the file.
    """

    name: str = dataclasses.field(default="", init=False)
    dataset: str
    split: str
    file: str
    sha256: str

    def __post_init__(self):
        self.name = f"{self.dataset}-{self.split}-{self.sha256[:16]}"


class MathProblems(tfds.core.GeneratorBasedBuilder):
    """Problems with their answers, in the order in which they are published."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "docs/math.md tells which files are expected, and where."
    code_path = None  # as in the Countdown builder
    report: tuple[str, ...] = ()  # what was seen when it was built

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Mathematical problems.",
            features=tfds.features.FeaturesDict(
                {"id": np.int32, "question": text, "answer": text, "solution": text}
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        config = self.builder_config
        path = Path(dl_manager.manual_dir) / config.file
        problems = read_problems(SOURCES[config.dataset], path)
        self.report = tuple(_report(config, path, problems))
        rows = [problem for problem in problems if problem is not None]
        return {config.split: self._generate_examples(rows)}

    def _generate_examples(self, problems: list[Problem]) -> Iterator[tuple[int, dict]]:
        for i, problem in enumerate(problems):
            yield i, {"id": i, **dataclasses.asdict(problem)}


def load(dataset: str, split: str, files: str | Path, data_dir: str | Path) -> list[Problem]:
    """The problems of a split, built under `data_dir` unless they are there.

    Args:
        dataset: a key of `SOURCES`.
        split: "train" or "test".
        files: the manual directory.
        data_dir: where built data sets lie.

    Raises:
        ValueError: there is no such split; a file or a column is missing, or a file is damaged.
    """
    path = find(dataset, split, files)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file = str(path.relative_to(files))
    config = ProblemsConfig(dataset=dataset, split=split, file=file, sha256=digest)
    builder = building.build(MathProblems, config, data_dir, files)
    for line in builder.report:
        print(line)
    source = builder.as_data_source(split)
    rows = source.__getitems__(list(range(len(source)))) if len(source) else []
    names = [field.name for field in dataclasses.fields(Problem)]
    return [Problem(**{name: row[name].decode("utf-8") for name in names}) for row in rows]


def _report(config: ProblemsConfig, path: Path, problems: list[Problem | None]) -> Iterator[str]:
    """What a user should know of a file before it is used."""
    file = SOURCES[config.dataset].splits[config.split]
    there = [problem for problem in problems if problem is not None]
    repeated = len(there) - len({fingerprint(problem.question) for problem in there})
    yield (
        f"{config.dataset}, {config.split}: {len(there):,} problems; {repeated:,} of them repeat"
        " another, layout apart."
    )
    if len(there) < len(problems):
        yield f"  {len(problems) - len(there):,} rows have no answer and are left out."
    if len(problems) != file.rows:
        yield f"  Warning: {path} has {len(problems):,} rows; {file.rows:,} were expected."
    elif file.sha256 not in (None, config.sha256):
        yield f"  Warning: {path} has the SHA-256 {config.sha256}; {file.sha256} was expected."
