import io
import random

import pytest
import rich.console

from offload_jax.evaluation.metrics import Estimate
from offload_jax.evaluation.records import read_records, write_records
from offload_jax.evaluation.table import (
    HEADER,
    Difference,
    Table,
    build_table,
    cells,
    markdown,
    terminal,
)
from tests.evaluation.samples import many


def run(n=200):
    """A start and a trained policy; each asked the cloud about half of the prompts."""
    rng = random.Random(0)
    cloud = [rng.random() < 0.9 for _ in range(n)]
    asked = [i % 2 == 0 for i in range(n)]
    start = many(
        [rng.choices(["right", "wrong", "call"], [27, 44, 29])[0] for _ in range(n)],
        [c if a else None for c, a in zip(cloud, asked, strict=True)],
    )
    trained = many(
        [rng.choices(["right", "wrong", "call"], [50, 5, 45])[0] for _ in range(n)],
        [None if a else c for c, a in zip(cloud, asked, strict=True)],
        policy="gapg",
    )
    return start, trained, cloud


def test_the_table_has_the_four_rows_and_empty_cells_where_a_cell_means_nothing():
    start, trained, cloud = run()
    table = build_table(start, trained, cap=0.3)
    names = ["start", "start + random offloading", "GAPG", "cloud only"]
    assert [row.name for row in table.rows] == names
    assert [len(cells(row)) for row in table.rows] == [len(HEADER)] * 4
    empty = [
        [title for title, c in zip(HEADER, cells(row), strict=True) if c == "–"]
        for row in table.rows
    ]
    assert empty == [[], ["call ratio"], [], ["conditional", "local", "call ratio"]]
    assert table.rows[3].overall.value == sum(cloud) / 200
    assert table.rows[1].offloaded == 0.3
    assert {row.n for row in table.rows} == {200}


def test_the_differences_are_those_of_the_rows():
    table = build_table(*run()[:2], cap=0.3)
    start, rival, trained, _ = (row.overall.value for row in table.rows)
    assert [d.name for d in table.differences] == ["GAPG − start", "GAPG − random offloading"]
    values = [d.estimate.value for d in table.differences]
    assert values == pytest.approx([trained - start, trained - rival])
    assert all(d.estimate.low < d.estimate.value < d.estimate.high for d in table.differences)


def test_the_table_redone_from_the_records_alone_equals_the_first(tmp_path):
    start, trained, _ = run()
    first = build_table(start, trained, cap=0.3, seed=5)
    for policy, records in (("start", start), ("gapg", trained)):
        write_records(tmp_path / f"{policy}.jsonl", random.Random(1).sample(records, len(records)))
    redone = build_table(
        read_records(tmp_path / "start.jsonl"), read_records(tmp_path / "gapg.jsonl"), 0.3, seed=5
    )
    assert redone == first
    assert markdown(redone) == markdown(first)


def test_the_markdown_reads_as_expected():
    outcomes, clouds = ["right"] * 25 + ["call"] * 25 + ["wrong"] * 50, [True] * 100
    text = markdown(build_table(many(outcomes, clouds), many(outcomes, clouds, "gapg"), cap=0.3))
    lines = text.splitlines()
    assert lines[0] == "|  | overall | conditional | local | call ratio | offloaded | n |"
    assert lines[1].count("|") == lines[0].count("|")
    interval = "25.0 [17.5, 34.3]"
    start = f"| 50.0 [40.4, 59.6] | 33.3 [23.7, 44.6] | {interval} | {interval} | 25.0 | 100 |"
    assert lines[2] == f"| start {start}"
    assert lines[5].startswith("| cloud only | 100.0 [96.3, 100.0] | – | – | – | 100.0 |")
    assert "| GAPG − start | +0.0 [+0.0, +0.0] | p = 1.000 |" in lines


def test_the_terminal_shows_the_same_numbers_within_80_columns():
    table = build_table(*run(1000)[:2], cap=0.3)
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    for part in terminal(table):
        console.print(part)
    text = console.export_text()
    assert "…" not in text
    for row in table.rows:
        for cell in cells(row)[1:]:
            assert all(piece in text for piece in cell.split(" [", 1))


def test_a_cloud_that_was_not_asked_everything_makes_no_table():
    start, trained, _ = run()
    with pytest.raises(ValueError, match="cloud's answer"):
        build_table(start, many(["wrong"] * 200, [None] * 200, policy="gapg"), cap=0.3)
    with pytest.raises(ValueError, match="same prompts"):
        build_table(start, trained[:-1], cap=0.3)


def test_a_difference_that_rounds_to_zero_has_no_minus_sign():
    tie = Difference("GAPG − start", Estimate(-1e-5, -0.0312, 1e-5), p=0.00001)
    assert "| GAPG − start | +0.0 [−3.1, +0.0] | p < 0.001 |" in markdown(Table((), (tie,), 0.3, 0))
