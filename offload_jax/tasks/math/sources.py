"""Published sets of mathematical problems: which files they are, and what is read of them.

Nothing is downloaded: the files lie, named as they are published, in `<files>/<data set>/`.
"""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from offload_jax.settings import require
from offload_jax.tasks.math.answers import BOX, last_box

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class File:
    """One split as it is published.

    Attributes:
        path: within the published repository.
        rows: how many it has.
        sha256: of the file, where it is known; other revisions of it may have another.
    """

    path: str
    rows: int
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A published data set.

    Attributes:
        origin: where it is published.
        columns: those that are read; others may be there.
        read: question, answer and solution ("" if there is none) of a row. The answer is None
            where the row has none.
        splits: its files.
    """

    origin: str
    columns: tuple[str, ...]
    read: Callable[[Row], tuple[str, str | None, str]]
    splits: Mapping[str, File]


def _boxed(solution: str) -> str | None:
    """The content of the last box, which is how MATH tells the answer; None if it is empty."""
    found = last_box(solution)
    return (found[1].strip() or None) if found else None


def _gsm8k(row: Row) -> tuple[str, str | None, str]:
    """The answer stands behind `####`; `<<3*4=12>>` is a calculator's and no part of the text."""
    work, marked, answer = row["answer"].rpartition("####")
    if not marked:
        return row["question"], None, ""
    answer = answer.strip()
    work = re.sub(r"<<[^<>]*>>", "", work).strip()
    return row["question"], answer, f"{work}\nThe answer is {BOX}{answer}}}."


HUB = "huggingface.co/datasets/"
SOURCES: dict[str, Source] = {
    "math_lighteval": Source(
        HUB + "DigitalLearningGmbH/MATH-lighteval",
        ("problem", "solution"),
        lambda row: (row["problem"], _boxed(row["solution"]), row["solution"]),
        {
            "train": File(
                "data/train-00000-of-00001.parquet",
                7_500,
                "eca6e667f4305dd5e5ba09b4fd55e7f3174a0fbe361cdfd4c44758b593a76933",
            ),
            "test": File(
                "data/test-00000-of-00001.parquet",
                5_000,
                "7dca8d6e41af88ecf82f2b5f36eb5530e083aaaa86ee325f62bd5c31535178c6",
            ),
        },
    ),
    "math500": Source(
        HUB + "HuggingFaceH4/MATH-500",
        ("problem", "answer"),
        lambda row: (row["problem"], str(row["answer"]), ""),
        {
            "test": File(
                "test.jsonl",
                500,
                "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
            )
        },
    ),
    "amc23": Source(
        HUB + "math-ai/amc23",
        ("question", "answer"),
        lambda row: (row["question"], str(row["answer"]), ""),
        {
            "test": File(
                "test-00000-of-00001.parquet",
                40,
                "b696e87ba47be4e879a60fd4ef1d4aa522ba78c5ae013c6aff5cc9788a397c5e",
            )
        },
    ),
    "minerva_math": Source(
        HUB + "math-ai/minervamath",
        ("question", "answer"),
        lambda row: (row["question"], str(row["answer"]), ""),
        {"test": File("test.jsonl", 272)},
    ),
    "agieval_math": Source(
        "github.com/ruixiangcui/AGIEval",
        ("question", "answer"),
        lambda row: (row["question"], str(row["answer"]), ""),
        {"test": File("data/v1/math.jsonl", 1_000)},
    ),
    "aime24": Source(
        HUB + "HuggingFaceH4/aime_2024",
        ("problem", "answer"),
        lambda row: (row["problem"], str(row["answer"]), ""),
        {
            "test": File(
                "data/train-00000-of-00001.parquet",  # published as "train", used for tests alone
                30,
                "26139847601a5037c237d5928b195e7260ca8074cf4f264b794af42847f79ccf",
            )
        },
    ),
    "gsm8k": Source(
        HUB + "openai/gsm8k",
        ("question", "answer"),
        _gsm8k,
        {
            "train": File(
                "main/train-00000-of-00001.parquet",
                7_473,
                "ea82612ea9582142387730c793eb67d3b12849002bc0b7fa6f8efafa7351419d",
            ),
            "test": File(
                "main/test-00000-of-00001.parquet",
                1_319,
                "ee7b8da9e381df27b9e3f7758a159ab2bdaa4dbaa910546cbbc47e0cb44e4f59",
            ),
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """One row: `answer` is what is compared with, `solution` a worked one or ""."""

    question: str
    answer: str
    solution: str


def find(dataset: str, split: str, files: str | Path) -> Path:
    """The file of a split. Raises ValueError telling what is expected where there is none."""
    source = SOURCES[dataset]
    require(
        split in source.splits,
        f"The data set {dataset!r} has no split {split!r}; it has {', '.join(source.splits)}.",
    )
    file, folder = source.splits[split], Path(files) / dataset
    for path in (folder / file.path, folder / f"{split}.parquet", folder / f"{split}.jsonl"):
        if path.is_file():
            return path
    checksum = f" and the SHA-256 {file.sha256}" if file.sha256 else ""
    raise ValueError(
        f"config.task.files: {folder / file.path} is missing. {source.origin} publishes it as"
        f" {file.path}, with {file.rows:,} rows, the columns {', '.join(source.columns)}{checksum};"
        f" {split}.parquet or {split}.jsonl in {folder} would do as well."
    )


def fingerprint(question: str) -> str:
    """What two questions share that differ in layout, punctuation and case alone."""
    text = unicodedata.normalize("NFKC", question).casefold()
    text = re.sub(r"\\(?:left|right|displaystyle)(?![a-z])|\\[,;:! ]", "", text)
    text = text.replace("dfrac", "frac").replace("tfrac", "frac")
    return "".join(c for c in text if c.isalnum() or c in "+-*/^=<>|!%")


def read_problems(source: Source, path: Path) -> list[Problem | None]:
    """All rows of a file; None for one without an answer. ValueError where it is damaged."""
    problems = []
    for number, row in enumerate(_rows(source, path), 1):
        try:
            question, answer, solution = source.read(row)
        except (AttributeError, TypeError):  # a value of another type
            raise ValueError(f"{path}: row {number} is not a problem with its answer.") from None
        good = isinstance(question, str) and question.strip() and isinstance(solution, str)
        require(bool(good), f"{path}: row {number} has no question, or a solution that is no text.")
        answered = answer is not None and answer.strip() not in ("", "None")
        problems.append(Problem(question, answer.strip(), solution) if answered else None)
    return problems


def _rows(source: Source, path: Path) -> Iterator[Row]:
    """The rows of a parquet or JSON-lines file, which is not trusted."""
    rows = _parquet(path, source.columns) if path.suffix == ".parquet" else _json_lines(path)
    for number, row in enumerate(rows, 1):
        missing = [name for name in source.columns if name not in row]
        require(
            not missing,
            f"{path}: row {number} has no {', '.join(missing)}; expected are the columns"
            f" {', '.join(source.columns)}.",
        )
        yield row


def _parquet(path: Path, columns: tuple[str, ...]) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path} needs the package pyarrow: pip install 'offload_jax[math]'."
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        there = [name for name in columns if name in file.schema_arrow.names]
        return file.read(columns=there).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a parquet file: {str(error)[:200]}.") from None


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        require(isinstance(row, dict), f"{path}, line {number}, is not a JSON object.")
        yield row
