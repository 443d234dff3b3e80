"""Small data sets in the published forms; every problem was made for these tests."""

import json

import pyarrow
import pyarrow.parquet


def problem(i, suffix=""):
    """A question, its answer and a worked solution."""
    a, b = i + 2, 3 * i + 5
    question = f"What is ${a} + {b}$?{suffix}"
    return question, str(a + b), f"We add: ${a} + {b} = {a + b}$, so it is $\\boxed{{{a + b}}}$."


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_json_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _math(numbers, **more):
    made = [problem(i) for i in numbers]
    return [
        {"problem": q, "level": "Level 1", "solution": s, "type": "Algebra"} | more
        for q, _, s in made
    ]


def write_all(folder, train=24, test=8):
    """Every data set, as it is published; test problems are not among those of train."""
    numbers = range(1000, 1000 + test)
    made = [problem(i) for i in numbers]
    write_parquet(folder / "math_lighteval/data/train-00000-of-00001.parquet", _math(range(train)))
    write_parquet(folder / "math_lighteval/data/test-00000-of-00001.parquet", _math(numbers))
    write_json_lines(
        folder / "math500/test.jsonl",
        [
            {"problem": q, "solution": s, "answer": a, "subject": "Algebra", "level": 1,
             "unique_id": f"test/algebra/{a}.json"}
            for q, a, s in made
        ],
    )  # fmt: skip
    write_parquet(
        folder / "amc23/test-00000-of-00001.parquet",
        [{"id": i, "question": q, "answer": a, "url": ""} for i, (q, a, _) in enumerate(made)],
    )
    write_json_lines(
        folder / "minerva_math/test.jsonl", [{"question": q, "answer": a} for q, a, _ in made]
    )
    write_json_lines(
        folder / "agieval_math/data/v1/math.jsonl",
        [
            {"passage": None, "question": q, "options": None, "label": None, "answer": a,
             "other": {"solution": s, "level": 1, "type": "Algebra"}}
            for q, a, s in made
        ],
    )  # fmt: skip
    write_parquet(
        folder / "aime24/data/train-00000-of-00001.parquet",
        [
            {"id": i, "problem": q, "solution": s, "answer": a, "url": "", "year": "2024"}
            for i, (q, a, s) in enumerate(made)
        ],
    )
    for split, rows in (("train", range(train)), ("test", numbers)):
        write_parquet(
            folder / f"gsm8k/main/{split}-00000-of-00001.parquet",
            [
                {"question": q, "answer": f"They add up: <<{a}={a}>>{a}.\n#### {a}"}
                for q, a, _ in map(problem, rows)
            ],
        )
