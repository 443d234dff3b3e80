"""The paper's tables from records: known accuracies give known cells, whatever is missing."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import rich.console

from offload_jax.evaluation.jsonl import write_lines
from offload_jax.evaluation.paper import EXPERIMENTS, PAPER, TASKS
from offload_jax.evaluation.records import write_records
from offload_jax.training.paper_report import cells_of, report
from tests.evaluation.samples import record

QWEN, LLAMA = "math_qwen25_15b", "math_llama32_3b"


def policy(name, right, calls, n=20, first_id=0, fallbacks=0):
    """`right` prompts solved, `calls` calls (the first `fallbacks` with a right fallback); the
    cloud solves all but every tenth prompt."""
    made = []
    for i in range(n):
        outcome = "right" if i < right else "call" if i < right + calls else "wrong"
        fallback = (i - right < fallbacks) if outcome == "call" else None
        cloud = (i + 1) % 10 != 0
        made.append(record(first_id + i, outcome, cloud, policy=name, fallback=fallback))
    return made


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, records)


def found(root, exhibit, over_cap="wrong"):
    cells = [cell for part in cells_of(PAPER[exhibit], root, over_cap) for cell in part]
    return {(c.experiment, c.measure, c.row, c.column): c for c in cells}


@pytest.fixture
def root(tmp_path):
    """A study of two seeds of Qwen, and of Llama GAPG alone, launched."""
    for seed, right in ((0, 10), (1, 12)):
        folder = tmp_path / QWEN / f"seed{seed}"
        write(folder / "records" / "gapg.jsonl", policy("gapg", right, 4, fallbacks=4))
        write(folder / "records" / "task_tuned.jsonl", policy("task_tuned", 11, 1))
    folder = tmp_path / LLAMA / "seed0" / "gapg"
    write(folder / "records" / "start.jsonl", policy("start", 1, 0))
    write(folder / "records" / "gapg.jsonl", policy("gapg", 14, 6))
    return tmp_path


def test_accuracies_of_known_records_stand_beside_the_papers(root):
    cells = found(root, "table1")
    gapg = cells[QWEN, "overall", "gapg", "math_lighteval"]
    # Four calls of 20 are under the cap of six; all of their clouds are right.
    assert gapg.ours == pytest.approx((70.0, 80.0)) and gapg.paper == 80.4
    assert gapg.mean == pytest.approx(75.0) and gapg.difference == pytest.approx(75.0 - 80.4)
    conditional = cells[QWEN, "conditional", "gapg", "math_lighteval"]
    assert conditional.ours == pytest.approx((100 * 10 / 16, 100 * 12 / 16))
    alone = cells[QWEN, "overall", "task_tuned", "math_lighteval"]
    assert alone.ours == pytest.approx((55.0, 55.0))
    assert cells[QWEN, "overall", "cloud", "math_lighteval"].ours == pytest.approx((90.0, 90.0))
    naive = cells[QWEN, "overall", "naive", "math_lighteval"]
    assert len(naive.ours) == 2 and all(55 < value < 90 for value in naive.ours)
    launched = cells[LLAMA, "overall", "gapg", "math_lighteval"]
    assert launched.ours == pytest.approx((100 * (14 + 5) / 20,))  # one of six clouds is wrong


def test_what_is_not_there_is_missing(root):
    cells = found(root, "table1")
    for row, column in (
        ("collaboration_aware", "math_lighteval"),
        ("router", "math_lighteval"),
        ("gapg", "amc23"),
        ("gapg", "average"),
    ):
        cell = cells[QWEN, "overall", row, column]
        assert cell.ours == () and cell.mean is None and cell.difference is None
        assert cell.paper is not None
    assert cells[LLAMA, "overall", "naive", "math_lighteval"].ours == ()


def test_the_average_is_over_all_data_sets(root):
    for task in TASKS[1:]:
        folder = root / QWEN / "seed0" / "gapg" / "out_of_domain" / "records"
        write(folder / f"{task}.jsonl", policy("gapg", 4, 2))
    cells = found(root, "table1")
    assert cells[QWEN, "overall", "gapg", "amc23"].ours == pytest.approx((30.0,))
    average = cells[QWEN, "overall", "gapg", "average"].ours
    assert average == pytest.approx(((70.0 + 4 * 30.0) / 5,))  # the other seed lacks data sets


def test_calls_over_the_cap_may_be_the_devices(root):
    write(root / QWEN / "seed0" / "records" / "gapg.jsonl", policy("gapg", 0, 20, fallbacks=20))
    key = QWEN, "overall", "gapg", "math_lighteval"
    wrong, device = (found(root, "table1", way)[key].ours[0] for way in ("wrong", "device"))
    assert wrong <= 30.0 and device == pytest.approx(wrong + 70.0)


def test_a_router_has_a_row_where_its_scores_are(root):
    folder = root / QWEN / "seed0"
    rows = {
        "test": policy("task_tuned", 11, 1, fallbacks=0),
        "validation": policy("task_tuned", 11, 1, first_id=100),
    }
    write(folder / "records" / "task_tuned.validation.jsonl", rows["validation"])
    for split, records in rows.items():
        # It is right about every prompt: the wrong ones come first.
        lines = [
            {"prompt_id": r.prompt_id, "score": 0.0 if r.device_correct else (1 + i) / 1e4}
            for i, r in enumerate(records)
        ]
        (folder / "scores").mkdir(exist_ok=True)
        write_lines(folder / "scores" / f"prompt_router.{split}.jsonl", lines)
    ours = found(root, "table1")[QWEN, "overall", "router", "math_lighteval"].ours
    assert ours == pytest.approx((100 * (11 + 5) / 20,))  # the cap's six, of which one cloud errs


def test_a_sweep_is_of_validation_prompts_and_knows_the_methods_own_value(root):
    folder = root / QWEN / "seed0"
    write(folder / "records" / "gapg.group.2.validation.jsonl", policy("gapg.group.2", 5, 0))
    write(folder / "records" / "gapg.validation.jsonl", policy("gapg", 15, 0))
    (folder / "study.json").write_text(
        json.dumps({"methods.gapg": {"sampling": {"group": 8}, "learning": {}}})
    )
    cells = found(root, "group")
    ours = {column: cells[QWEN, "group", "overall", column].ours for column in (2, 4, 8)}
    assert ours == {2: (25.0,), 4: (), 8: (75.0,)}


def test_budgets_and_tokens(root):
    cells = found(root, "budgets")
    assert cells[QWEN, "at_budget", "naive", 0].ours == pytest.approx((55.0, 55.0))
    assert cells[QWEN, "at_budget", "gapg", 100].ours == pytest.approx((90.0, 90.0))
    # The device's own answers, and the four right fallbacks of its calls.
    assert cells[QWEN, "at_budget", "gapg", 0].ours == pytest.approx((70.0, 80.0))
    assert cells[QWEN, "at_budget", "collaboration_aware", 80].paper is None
    tokens = found(root, "tokens")[QWEN, "tokens", "gapg", "call"]
    assert tokens.ours == (3.0, 3.0) and tokens.difference == -172.0


def test_the_report_is_text_and_json_with_missing_cells(root):
    console = rich.console.Console(file=io.StringIO(), width=150)
    report("table1", root, console)
    text = (root / "paper" / "table1.md").read_text()
    assert "| GAPG, math_lighteval | 75.0 ± 7.1 | 80.4 | −5.4 | 2 |" in text
    assert "| Collaboration-Aware, amc23 | – | 42.5 | – | 0 |" in text
    assert r"\begin{table}" in (root / "paper" / "table1.tex").read_text()
    plain = json.loads((root / "paper" / "table1.json").read_text())
    assert plain["over_cap"] == "wrong" and len(plain["cells"]) == 2 * (36 + 30)
    missing = [cell for cell in plain["cells"] if not cell["ours"]]
    assert all(cell["mean"] is None and cell["difference"] is None for cell in missing)
    report("final", root, console)
    assert (root / "paper" / f"final.{QWEN}.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", PAPER)
def test_every_exhibit_can_be_made_of_nothing(tmp_path, name):
    exhibit = PAPER[name]
    cells = [cell for part in cells_of(exhibit, tmp_path) for cell in part]
    assert cells and all(cell.mean is None for cell in cells)
    assert {part.experiment for part in exhibit.parts} <= EXPERIMENTS.keys()


def test_a_damaged_record_is_named(root):
    path = root / QWEN / "seed0" / "records" / "gapg.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"gapg\.jsonl, line 1, is not a record"):
        found(root, "table1")


def test_a_workdir_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist; it holds the finished runs"):
        report("table1", tmp_path / "nowhere", rich.console.Console(file=io.StringIO()))


def test_the_command_says_a_mistake_in_one_sentence():
    command = [sys.executable, "-m", "experiments.table", "--workdir=nowhere"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 2 and "give either --config or --paper" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
