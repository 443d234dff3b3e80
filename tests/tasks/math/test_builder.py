"""Data sets from files: what is read, what is told, what is refused."""

import hashlib
import shutil
import subprocess
import sys

import pytest

from offload_jax.tasks.math.builder import load
from offload_jax.tasks.math.sources import SOURCES, find, fingerprint
from tests.tasks.math.files import problem, write_all, write_json_lines, write_parquet

SPLITS = [(name, split) for name, source in SOURCES.items() for split in source.splits]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_all(folder)
    return folder


@pytest.fixture
def own(files, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(files, tmp_path / "own")


@pytest.mark.parametrize(("dataset", "split"), SPLITS)
def test_every_data_set_is_read_as_it_is_published(files, tmp_path, dataset, split):
    numbers = range(24) if split == "train" else range(1000, 1008)
    rows = load(dataset, split, files, tmp_path)
    assert [(row.question, row.answer) for row in rows] == [problem(i)[:2] for i in numbers]
    if split == "train":
        assert all(f"\\boxed{{{row.answer}}}" in row.solution for row in rows)
        assert all("<<" not in row.solution and "####" not in row.solution for row in rows)


def test_the_table_of_data_sets_is_whole():
    expected = {"math_lighteval", "math500", "amc23", "minerva_math", "agieval_math", "aime24"}
    assert SOURCES.keys() == expected | {"gsm8k"}
    rows = {f"{n} {s}": SOURCES[n].splits[s].rows for n, s in SPLITS}
    assert rows["math_lighteval train"] == 7_500 and rows["math500 test"] == 500
    for source in SOURCES.values():
        for file in source.splits.values():
            assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32


def test_building_tells_of_the_file_and_is_not_repeated(own, tmp_path, capsys):
    rows = [{"question": problem(i)[0], "answer": problem(i)[1]} for i in (1, 2, 3)]
    again = {**rows[0], "question": " what is $\\left. 3 + 8 $ ? "}
    write_json_lines(own / "minerva_math/test.jsonl", [*rows, again, {**rows[1], "answer": None}])
    assert len(load("minerva_math", "test", own, tmp_path / "data")) == 4
    told = capsys.readouterr().out
    assert "4 problems; 1 of them repeat another" in told
    assert "1 rows have no answer and are left out" in told
    assert "has 5 rows; 272 were expected" in told
    assert len(load("minerva_math", "test", own, tmp_path / "data")) == 4
    assert capsys.readouterr().out == ""
    write_json_lines(own / "minerva_math/test.jsonl", rows)  # another file is another data set
    assert len(load("minerva_math", "test", own, tmp_path / "data")) == 3


def test_another_checksum_is_told(own, tmp_path, capsys):
    rows = [{"problem": problem(i)[0], "answer": problem(i)[1]} for i in range(500)]
    write_json_lines(own / "math500/test.jsonl", rows)
    load("math500", "test", own, tmp_path / "data")
    digest = hashlib.sha256((own / "math500/test.jsonl").read_bytes()).hexdigest()
    told = capsys.readouterr().out
    assert f"has the SHA-256 {digest}; 35dc41080a36" in told and "500 problems" in told


def test_the_other_format_under_a_plain_name_will_do(files, tmp_path):
    write_parquet(tmp_path / "math500/test.parquet", [{"problem": "1 + 1?", "answer": 2}])
    assert load("math500", "test", tmp_path, tmp_path / "data")[0].answer == "2"
    assert find("math500", "test", files) == files / "math500/test.jsonl"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"), ("so $\\boxed 2$", "2"), ("so \\fbox{x}", None),
     ("so \\boxed{}", None), ("so 3", None), ("\\boxed{1} and \\boxed{2}", "2")],
)  # fmt: skip
def test_the_answer_of_a_published_solution_is_its_last_box(tmp_path, solution, answer):
    rows = [{"problem": "?", "solution": solution}, {"problem": "!", "solution": "\\boxed{9}"}]
    write_parquet(tmp_path / "math_lighteval/test.parquet", rows)
    found = load("math_lighteval", "test", tmp_path, tmp_path / "data")
    assert [row.answer for row in found] == ([answer] if answer else []) + ["9"]


def test_a_missing_file_is_told_with_all_that_is_expected_of_it(tmp_path):
    with pytest.raises(ValueError) as told:
        load("math500", "test", tmp_path, tmp_path / "data")
    for part in ("config.task.files", "math500/test.jsonl is missing", "HuggingFaceH4/MATH-500",
                 "500 rows", "problem, answer", "35dc41080a36", "test.parquet"):  # fmt: skip
        assert part in str(told.value)
    with pytest.raises(ValueError, match="'aime24' has no split 'train'; it has test"):
        find("aime24", "train", tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "minerva_math/test.jsonl",
            '{"question": "?"}',
            "row 1 has no answer; expected are the co",
        ),
        (
            "minerva_math/test.jsonl",
            '{"question": "?", "answer": "1"}\n{"a',
            "line 2, is not a JSON",
        ),
        ("minerva_math/test.jsonl", "[1]", "line 1, is not a JSON object"),
        ("minerva_math/test.jsonl", "[" * 100_000, "line 1, is not a JSON object"),
        ("minerva_math/test.jsonl", '{"question": 7, "answer": "1"}', "row 1 has no question"),
        ("minerva_math/test.jsonl", "\udcff", "line 1, is not a JSON object"),
        ("gsm8k/train.jsonl", '{"question": "?", "answer": 7}', "row 1 is not a problem"),
        ("amc23/test.parquet", "PAR1 no", "is not a parquet file"),
        ("amc23/test.parquet", "", "is not a parquet file"),
    ],
)
def test_a_damaged_file_is_one_sentence_that_names_it(tmp_path, file, text, message):
    path = tmp_path / file
    path.parent.mkdir()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    dataset, split = path.parent.name, path.stem
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        load(dataset, split, tmp_path, tmp_path / "data")


def test_a_missing_column_of_a_parquet_file_is_named(tmp_path):
    write_parquet(tmp_path / "amc23/test.parquet", [{"question": "?", "label": "A"}])
    with pytest.raises(
        ValueError, match="has no answer; expected are the columns question, answer"
    ):
        load("amc23", "test", tmp_path, tmp_path / "data")


def test_questions_that_differ_in_layout_alone_have_one_fingerprint():
    same = ["Find $\\dfrac{1}{2} + x$.", "find $\\frac{1}{2}+x$", "Find \\( \\frac{1}{2} + x\\) !"]
    assert len({fingerprint(text.replace("!", "")) for text in same}) == 1
    assert fingerprint("1 + 2") != fingerprint("1 - 2")


def test_tensorflow_is_not_imported(files, tmp_path):
    program = (
        "import sys; from offload_jax.tasks.math.builder import load;"
        f"load('gsm8k', 'test', {str(files)!r}, {str(tmp_path)!r});"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False" and done.stderr == ""
