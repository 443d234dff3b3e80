import dataclasses
import json
import math
import random

import numpy as np
import pytest

from offload_jax.evaluation.records import columns, read_records, share_cloud, write_records
from tests.evaluation.samples import many, record


def test_records_survive_the_disk(tmp_path):
    records = [record(4, "right"), record(2, "call", cloud=True), record(3, "wrong", cloud=False)]
    write_records(tmp_path / "records.jsonl", records)
    assert read_records(tmp_path / "records.jsonl") == records


def test_a_truncated_file_of_records_is_refused_by_line(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [record(1), record(2)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"records\.jsonl, line 2"):
        read_records(path)


@pytest.mark.parametrize(
    "change",
    [
        {"alien": 1},
        {"prompt_id": None},
        {"prompt_id": -1},
        {"prompt_id": True},
        {"device_correct": 1},
        {"finish": "error"},
        {"response_tokens": [1, "2"]},
        {"cloud_correct": "yes"},
        {"gold": 3},
        {"called": True},
        {"answer": None},
        {"kind": "neither", "answer": None, "device_correct": True},
        {"logprob": None},
        {"logprob": True},
        {"logprob": "-1.0"},
        {"logprob": 10**400},
        {"p_call": 1.01},
        {"p_call": -0.01},
        {"p_call": False},
        {"agreement": 2},
        {"device_seconds": -1},
        {"cloud_correct": True, "cloud_tokens": 1.5},
        {"cloud_correct": True, "cloud_tokens": -1},
        {"cloud_correct": True, "cost": -0.5},
        {"cloud_correct": None, "cloud_tokens": 3},
        {"cloud_correct": None, "cloud_seconds": 1.0},
        {"cloud_correct": None, "cost": 0.0},
    ],
)
def test_a_row_that_is_no_record_or_contradicts_itself_is_refused_by_line(tmp_path, change):
    good = dataclasses.asdict(record(1))
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(ValueError, match=r"records\.jsonl, line 2, is not a record"):
        read_records(path)


@pytest.mark.parametrize("name", ["logprob", "p_call", "device_seconds", "cost"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_record_holds_a_number_that_is_not_finite(name, number):
    with pytest.raises(ValueError, match=f"{name} cannot be .*: it must be a finite number"):
        dataclasses.replace(record(1, cloud=True), **{name: number})


def test_a_whole_number_where_a_float_belongs_becomes_one_in_memory_and_on_disk(tmp_path):
    whole = dataclasses.replace(record(1, cloud=True), logprob=-2, p_call=1, cost=0)
    assert [type(x) for x in (whole.logprob, whole.p_call, whole.cost)] == [float] * 3
    write_records(tmp_path / "records.jsonl", [whole])
    assert '"logprob": -2.0, "p_call": 1.0' in (tmp_path / "records.jsonl").read_text()


def test_a_row_without_a_field_is_refused_and_the_field_named(tmp_path):
    row = dataclasses.asdict(record(1))
    del row["cloud_correct"]
    (tmp_path / "records.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="cloud_correct"):
        read_records(tmp_path / "records.jsonl")


def test_columns_do_not_depend_on_the_order_of_records():
    records = many(["right", "call", "wrong", "call"], [None, True, False, None])
    shuffled = random.Random(0).sample(records, len(records))
    for one, other in zip(
        dataclasses.astuple(columns(records)), dataclasses.astuple(columns(shuffled)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    results = columns(shuffled)
    assert results.prompt_ids.tolist() == [0, 1, 2, 3]
    assert results.device_correct.tolist() == [True, False, False, False]
    assert results.called.tolist() == [False, True, False, True]
    assert results.cloud_known.tolist() == [False, True, True, False]
    assert results.cloud_correct.tolist() == [False, True, False, False]
    assert results.p_call.tolist() == [0.125, 0.75, 0.125, 0.75]


def test_columns_hold_nan_where_a_record_holds_nothing():
    results = columns(many(["right", "call"], [None, True]))
    for name in ("cloud_tokens", "cloud_seconds", "cost"):
        assert np.isnan(getattr(results, name)).tolist() == [True, False]
    assert np.isnan(results.agreement).all()
    assert results.cloud_tokens.dtype == results.agreement.dtype == np.float64
    assert results.logprob.tolist() == [-0.25, -0.25]
    assert results.device_seconds.tolist() == [0.5, 0.5]


def test_columns_hold_one_policy_and_each_prompt_once():
    with pytest.raises(ValueError, match="no records"):
        columns([])
    with pytest.raises(ValueError, match="prompt 7 more than once"):
        columns([record(7), record(8), record(7)])
    with pytest.raises(ValueError, match=r"gapg \(seed 0\), start \(seed 0\)"):
        columns([record(1), record(2, policy="gapg")])
    with pytest.raises(ValueError, match="seed 1"):
        columns([record(1), record(2, seed=1)])


def test_a_cloud_answer_is_the_prompts_whoever_asked():
    first = columns(many(["call", "wrong", "right"], [True, None, None]))
    second = columns(many(["wrong", "call", "right"], [None, False, None], policy="gapg"))
    for shared in share_cloud(first, second):
        assert shared.cloud_known.tolist() == [True, True, False]
        assert shared.cloud_correct.tolist() == [True, False, False]


def test_what_a_cloud_answer_took_goes_with_it_but_replaces_no_measurement():
    slow = dataclasses.replace(record(1, cloud=True), cloud_seconds=9.0)
    first = columns([record(0, cloud=True), slow, record(2)])
    second = columns(many(["call"] * 3, [None, True, None], policy="gapg"))
    one, other = share_cloud(first, second)
    np.testing.assert_array_equal(one.cloud_seconds, [2.0, 9.0, np.nan])
    np.testing.assert_array_equal(other.cloud_seconds, [2.0, 2.0, np.nan])
    np.testing.assert_array_equal(other.cloud_tokens, [50, 50, np.nan])
    np.testing.assert_array_equal(other.cost, [0.001, 0.001, np.nan])


def test_two_clouds_are_not_mixed_up():
    first, second = columns([record(5, "call", cloud=True)]), columns([record(5, cloud=False)])
    with pytest.raises(ValueError, match="prompt 5"):
        share_cloud(first, second)
