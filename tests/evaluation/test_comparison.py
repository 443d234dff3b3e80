import dataclasses
import io
import json
import math

import numpy as np
import pytest
import rich.console

from offload_jax.evaluation.budgets import aiq, apgr, budget_curve
from offload_jax.evaluation.comparison import Entry, as_json, compare, latex, markdown, terminal
from offload_jax.evaluation.metrics import capped, cloud_only
from offload_jax.evaluation.records import Columns
from offload_jax.evaluation.seeds import pooled_difference, pooled_p

CLOUD = [1, 1, 1, 1, 1, 0]


def results(device, called, cloud=CLOUD):
    """Six prompts; a device's attempt takes 10 tokens and 2 s, a cloud's answer 30, 6 s, 3 ¢."""
    each = np.ones(len(device))
    return Columns(
        policy="a policy",
        prompt_ids=np.arange(len(device)),
        contents=np.arange(len(device)),
        device_correct=np.array(device, bool),
        called=np.array(called, bool),
        fallback_known=each < 0,
        fallback_correct=each < 0,
        cloud_known=each > 0,
        cloud_correct=np.array(cloud, bool),
        cloud_failed=each < 0,
        device_tokens=10 * each.astype(int),
        logprob=-each,
        p_call=np.nan * each,
        agreement=np.nan * each,
        cloud_tokens=30 * each,
        device_seconds=2 * each,
        cloud_seconds=6 * each,
        cost=0.03 * each,
    )


def entry(device, called, scores=None, attempt_first=True):
    columns = results(device, called)
    scores = None if scores is None else np.array(scores, float)
    return Entry(columns, capped(columns, 1 / 3, seed=0), scores, attempt_first)


def methods():
    """Two seeds: the start solves 2 and 3 of 6 prompts, GAPG with the cloud 4 and 5."""
    no_call = [0] * 6
    only = [entry([1, 1, 0, 0, 0, 0], no_call), entry([1, 1, 1, 0, 0, 0], no_call)]
    cloud = Entry(only[0].results, cloud_only(only[0].results), None, attempt_first=False)
    return {
        "Cloud LLM": [cloud],
        "Task-Tuning Only": only,
        "GAPG": [
            entry([1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], scores=[0, 1, 5, 4, 3, 2]),
            entry([1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0], scores=[0, 1, 2, 4, 5, 3]),
        ],
    }


ENDS = {"device": "Task-Tuning Only", "cloud": "Cloud LLM"}


def compared(entries=None, seed=0):
    return compare(entries or methods(), "GAPG", 1 / 3, seed, **ENDS)


def rows(comparison):
    return {method.name: method for method in comparison.methods}


def test_every_number_is_the_mean_and_deviation_of_its_seeds():
    gapg = rows(compared())["GAPG"]
    expected = {  # by hand, per seed
        "overall": (4 / 6, 5 / 6),
        "conditional": (3 / 5, 3 / 4),
        "local": (3 / 6, 3 / 6),
        "call_ratio": (1 / 6, 2 / 6),
        "offloaded": (1 / 6, 2 / 6),
        "needless": (0, 0),
        "missed": (1 / 6, 0),
        "both_wrong": (1 / 6, 1 / 6),
        "pgr": (0.6, 1.0),  # between (2/6 + 3/6) / 2 and 5/6
        "auroc": (6 / 9, 1.0),
        "cpt_50": (2 / 6, 1 / 6),
        "cpt_80": (3 / 6, 2 / 6),
        "oracle_gap": (1 / 6, 0),
        "device_tokens": (10, 10),
        "cloud_tokens": (5, 10),
        "seconds": (3, 4),
        "dollars": (0.005, 0.01),
    }
    for name, (first, second) in expected.items():
        spread = gapg.numbers[name]
        assert spread.values == pytest.approx((first, second)), name
        assert spread.mean == pytest.approx((first + second) / 2), name
        assert spread.deviation == pytest.approx(abs(first - second) / math.sqrt(2)), name


def test_the_oracle_is_under_the_cap_too():
    only = rows(compared())["Task-Tuning Only"]
    assert only.numbers["oracle_gap"].values == pytest.approx((2 / 6, 2 / 6))  # of 3 and 2 gains


def test_numbers_over_all_budgets_are_those_of_the_score():
    entries = methods()
    gapg = rows(compared(entries))["GAPG"]
    for name, number in (("apgr", apgr), ("aiq", aiq)):
        curves = [budget_curve(e.results, e.scores, seed=0) for e in entries["GAPG"]]
        assert gapg.numbers[name].values == pytest.approx([number(c) for c in curves])


def test_the_reference_is_compared_with_every_method_and_a_single_entry_with_every_seed():
    entries = methods()
    table = rows(compared(entries))
    assert table["GAPG"].difference is None
    outcomes = {name: [e.outcome for e in each] for name, each in entries.items()}
    for name, seconds, value in (
        ("Task-Tuning Only", outcomes["Task-Tuning Only"], 1 / 3),
        ("Cloud LLM", 2 * outcomes["Cloud LLM"], -1 / 12),
    ):
        difference = table[name].difference
        assert difference.estimate.value == pytest.approx(value)
        assert difference.estimate == pooled_difference(outcomes["GAPG"], seconds, 0)
        assert difference.p == pooled_p(outcomes["GAPG"], seconds, 0)
        assert len(difference.mcnemar) == 2
    assert table["Task-Tuning Only"].difference.mcnemar == (0.5, 0.5)  # 2 wins, no loss


def test_the_cloud_alone_has_no_device_part_and_no_deviation():
    cloud = rows(compared())["Cloud LLM"]
    assert cloud.numbers["overall"].mean == pytest.approx(5 / 6)
    assert cloud.numbers["overall"].deviation is None
    assert cloud.numbers["pgr"].mean == pytest.approx(1.0)
    assert cloud.numbers["device_tokens"].mean == 0
    for name in ("conditional", "local", "call_ratio", "needless", "missed", "oracle_gap"):
        assert cloud.numbers[name] is None, name


def test_a_router_on_the_prompt_alone_spares_the_device_what_it_offloads():
    entries = methods()
    routers = [dataclasses.replace(e, attempt_first=False) for e in entries["GAPG"]]
    table = rows(compared(entries | {"Router": routers}))
    assert table["Router"].numbers["device_tokens"].values == pytest.approx((50 / 6, 40 / 6))
    assert table["Router"].numbers["seconds"].values == pytest.approx((16 / 6, 20 / 6))
    assert table["GAPG"].numbers["device_tokens"].values == (10, 10)


def test_a_number_that_one_seed_lacks_is_not_averaged_over_the_others():
    entries = methods()
    first, second = entries["GAPG"]
    unknown = dataclasses.replace(second.results, cost=np.full(6, np.nan))
    entries["GAPG"] = [
        dataclasses.replace(first, scores=None),
        dataclasses.replace(second, results=unknown),
    ]
    numbers = rows(compared(entries))["GAPG"].numbers
    assert numbers["auroc"] is None
    assert numbers["dollars"] is None
    assert numbers["cloud_tokens"].values == pytest.approx((5, 10))


def test_the_markdown_holds_three_tables_with_captions():
    text = markdown(compared())
    lines = text.splitlines()
    header = "|  | overall | conditional | local | call ratio | offloaded | GAPG − method | p |"
    assert lines[0] == header
    assert lines[2].startswith("| Cloud LLM | 83.3 | – | – | – | 100.0 | −8.3 [")
    gapg = "| GAPG | 75.0 ± 11.8 | 67.5 ± 10.6 | 50.0 ± 0.0 | 25.0 ± 11.8 | 25.0 ± 11.8 | – | – |"
    assert lines[4] == gapg
    assert "n = 6 test prompts, 2 seeds (Cloud LLM: one)" in text
    assert "capped at 33.3333 %" in text
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| GAPG | 0.0 ± 0.0 | 8.3 ± 11.8 | 16.7 ± 0.0 | 83.3 ± 23.6 | 80.0 ± 28.3 |" in text
    assert "| GAPG | 10.0 ± 0.0 | 7.5 ± 3.5 |" in text
    assert "7.500 ± 3.536 |" in text  # dollars per 1,000 prompts
    assert "-" not in "".join(line for line in lines if "| Cloud LLM" in line)


def test_names_cannot_break_the_tables():
    entries = methods()
    entries["A & B_1 | 50 % {$\\alpha$}"] = entries["GAPG"]
    entries["[1]"] = entries["GAPG"]
    text = markdown(compared(entries))
    assert "| A & B_1 \\| 50 % {$\\alpha$} |" in text
    text = latex(compared(entries))
    assert r"    A \& B\_1 $|$ 50 \% \{\$\textbackslash{}alpha\$\} & 75.0 $\pm$ 11.8 &" in text
    assert "\n    {[}1] &" in text  # else LaTeX reads a length after the row's end


def test_the_latex_has_a_cell_per_column_and_only_ascii():
    text = latex(compared())
    assert text.isascii()
    for part in text.split(r"\begin{table}")[1:]:
        columns = part.split(r"\begin{tabular}{")[1].split("}")[0]
        body = [line for line in part.splitlines() if line.endswith(r"\\")]
        assert len(body) == 4
        assert {line.count(" & ") for line in body} == {len(columns) - 1}
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 3
    assert "$-$8.3 [" in text


def test_the_json_is_plain_whole_and_without_nan():
    comparison = compared()
    plain = as_json(comparison)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain["n"], plain["cap"], plain["seed"]) == (6, 1 / 3, 0)
    cloud, only, gapg = plain["methods"]
    assert cloud["numbers"]["local"] is None
    assert gapg["difference"] is None
    assert gapg["numbers"]["overall"]["values"] == pytest.approx([4 / 6, 5 / 6])
    assert only["difference"].keys() == {"value", "low", "high", "p", "mcnemar"}
    assert only["difference"]["mcnemar"] == [0.5, 0.5]


def test_the_terminal_shows_whole_numbers_within_80_columns():
    entries = methods()
    entries["Collaboration-Aware Tuning (Dr.GRPO, several updates)"] = entries["Task-Tuning Only"]
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    comparison = compared(entries)
    console.print(terminal(comparison))
    text = console.export_text()
    assert "…" not in text
    assert "several" in text
    for line in markdown(comparison).splitlines()[2:6]:
        overall, _, local, calls, _, difference, _ = line.strip("| ").split(" | ")[1:]
        for cell in (overall, local, calls, difference):
            assert all(piece in text for piece in cell.split(" [", 1))


def refused(entries, **changes):
    names = {"reference": "GAPG", **ENDS, **changes}
    with pytest.raises(ValueError) as error:
        compare(entries, cap=1 / 3, seed=0, **names)
    return str(error.value)


@pytest.mark.parametrize("role", ["reference", "device", "cloud"])
def test_an_unknown_method_is_refused(role):
    message = refused(methods(), **{role: "GAPC"})
    assert message == (
        f"{role} must be one of the compared methods (Cloud LLM, Task-Tuning Only, GAPG), "
        f"not 'GAPC'"
    )


def test_seeds_that_are_missing_are_refused():
    entries = methods()
    entries["GAPG"] = [*entries["GAPG"], entries["GAPG"][0]]
    assert "Task-Tuning Only has 2 seeds where others have 3" in refused(entries)
    assert "Router has 0 seeds" in refused(methods() | {"Router": []})


def test_entries_that_cannot_be_compared_are_refused():
    entries = methods()
    good = entries["GAPG"][1]

    def message(**changes):
        changed = dataclasses.replace(good, **changes)
        return refused(entries | {"GAPG": [entries["GAPG"][0], changed]})

    moved = {"prompt_ids": np.arange(1, 7)}
    other = dataclasses.replace(good.results, **moved)
    assert "same prompts" in message(outcome=dataclasses.replace(good.outcome, **moved))
    outcome = dataclasses.replace(good.outcome, **moved)
    assert message(results=other, outcome=outcome).startswith("GAPG, entry 2 of 2: ")
    unasked = dataclasses.replace(good.results, cloud_known=np.arange(6) != 4)
    assert "1 prompts, such as prompt 4" in message(results=unasked)
    assert "one finite number per prompt" in message(scores=np.arange(5.0))
    assert "one finite number per prompt" in message(scores=np.array([0, 1, 2, 3, 4, np.nan]))


def test_auroc_is_about_the_responses_that_do_not_call():
    """Four answers, the wrong ones with the higher scores; two calls with the highest of all."""
    called = [0, 0, 0, 0, 1, 1]
    entries = {**methods(), "GAPG": [entry([1, 1, 0, 0, 0, 0], called, [1, 3, 2, 4, 5, 5])] * 2}
    assert number(compared(entries), "GAPG", "auroc") == pytest.approx(3 / 4)


def test_the_call_ratio_is_of_what_the_method_asked_for():
    entries = methods()
    asked = np.array([1, 1, 1, 0, 0, 0], bool)
    entries["GAPG"] = [dataclasses.replace(e, asked=asked) for e in entries["GAPG"]]
    assert number(compared(entries), "GAPG", "call_ratio") == pytest.approx(1 / 2)


def number(comparison, name, key):
    return next(m for m in comparison.methods if m.name == name).numbers[key].mean
