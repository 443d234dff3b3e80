import dataclasses
import json
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
    ],
)
def test_a_row_that_is_no_record_or_contradicts_itself_is_refused_by_line(tmp_path, change):
    good = dataclasses.asdict(record(1))
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(ValueError, match=r"records\.jsonl, line 2, is not a record"):
        read_records(path)


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


def test_two_clouds_are_not_mixed_up():
    first, second = columns([record(5, "call", cloud=True)]), columns([record(5, cloud=False)])
    with pytest.raises(ValueError, match="prompt 5"):
        share_cloud(first, second)
