"""Where the cloud fails, the device answers, flagged; a failure is never a silent zero or drop."""

import dataclasses

import numpy as np
import pytest

from offload_jax.evaluation.budgets import budget_curve
from offload_jax.evaluation.comparison import _oracle
from offload_jax.evaluation.metrics import capped, cloud_only, overall_accuracy
from offload_jax.evaluation.records import columns, read_records, share_cloud, write_records
from tests.evaluation.samples import record


def failed(prompt_id, fallback):
    row = record(prompt_id, "call", None, fallback=fallback)
    return dataclasses.replace(row, cloud_failure="timeout")


RECORDS = [
    failed(0, True),
    failed(1, False),
    record(2, "call", True, fallback=False),
    record(3, "right", True),
    record(4, "wrong", False),
]


def test_a_failed_call_goes_back_to_the_device_and_is_flagged():
    outcome = capped(columns(RECORDS), cap=1.0, seed=0)
    assert outcome.degraded.tolist() == [True, True, False, False, False]
    assert outcome.offloaded.tolist() == [False, False, True, False, False]
    assert outcome.correct.tolist() == [True, False, True, True, False]
    assert overall_accuracy(outcome).value == pytest.approx(3 / 5)


def test_beyond_the_cap_nobody_was_asked_and_nothing_is_degraded():
    outcome = capped(columns(RECORDS), cap=0.0, seed=0)
    assert not outcome.degraded.any() and outcome.correct.tolist() == [0, 0, 0, 1, 0]


def test_the_cloud_alone_is_the_device_where_it_fails():
    outcome = cloud_only(columns(RECORDS))
    assert outcome.degraded.sum() == 2 and outcome.correct.tolist() == [1, 0, 1, 1, 0]


def test_offloading_a_prompt_whose_cloud_fails_leaves_it_to_the_devices_fallback():
    results = columns(RECORDS)
    curve = budget_curve(results, np.arange(5)[::-1].astype(float), seed=0, points=6)
    assert (5 * curve.accuracy).round().tolist() == [1, 2, 2, 3, 3, 3]
    assert 5 * curve.accuracy[-1] == cloud_only(results).correct.sum()


@pytest.mark.parametrize("cap", [0.0, 0.2, 0.4, 0.6, 1.0])
def test_no_policy_is_above_the_oracle_where_the_cloud_fails(cap):
    results = columns(RECORDS)
    assert _oracle(results, cap) >= overall_accuracy(capped(results, cap, seed=0)).value


def test_an_answer_that_another_policys_records_hold_heals_a_failure():
    other = [record(i, "right", True, policy="other") for i in range(5)]
    other[4] = record(4, "wrong", False, policy="other")
    healed, _ = share_cloud(columns(RECORDS), columns(other))
    assert not healed.cloud_failed.any() and healed.cloud_known.all()


def test_records_keep_the_failure_and_do_not_contradict_it(tmp_path):
    write_records(tmp_path / "r.jsonl", RECORDS)
    assert read_records(tmp_path / "r.jsonl") == RECORDS
    with pytest.raises(ValueError, match="cloud that failed cannot have cloud_correct"):
        dataclasses.replace(record(0, "call", True), cloud_failure="timeout")
