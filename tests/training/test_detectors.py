import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload_jax.training.detectors import RunError, check_finite, collapse


def warnings(call_ratios, patience):
    """What is said at each evaluation of a run."""
    return [collapse(call_ratios[: i + 1], patience) for i in range(len(call_ratios))]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_number_that_is_none_stops_the_run_and_says_what_to_change(bad):
    metrics = {"reward": 0.5, "loss": bad, "conditional": None}
    with pytest.raises(
        FloatingPointError, match=r"step 37: loss is .*config\.learning\.optimizer\.rate"
    ):
        check_finite(37, metrics)
    with pytest.raises(RunError, match=r"lower config\.start\.optimizer\.rate"):
        check_finite(37, metrics, "config.start.optimizer.rate")


def test_finite_metrics_pass():
    check_finite(1, {"loss": np.float32(-3e38), "reward": 0, "conditional": None})


@pytest.mark.parametrize(
    ("ratio", "advice"),
    [
        (1.0, "lower config.learning.reward.call (α_c) or config.learning.optimizer.rate"),
        (0.99, "lower config.learning.reward.call (α_c) or config.learning.optimizer.rate"),
        (
            0.0,
            "raise config.learning.reward.call (α_c) or lower config.learning.optimizer.rate",
        ),
        (
            0.01,
            "raise config.learning.reward.call (α_c) or lower config.learning.optimizer.rate",
        ),
    ],
)
def test_a_collapse_is_told_once_at_the_evaluation_that_completes_it(ratio, advice):
    said = warnings([0.4, ratio, ratio, ratio, ratio, ratio], patience=3)
    assert [bool(s) for s in said] == [False, False, False, True, False, False]
    assert advice in said[3]


def test_a_second_collapse_is_told_again():
    said = warnings([1.0, 1.0, 0.5, 1.0, 1.0, 0.0, 0.0], patience=2)
    assert [bool(s) for s in said] == [False, True, False, False, True, False, True]
    assert "lower config.learning.reward.call" in said[4]
    assert "raise config.learning.reward.call" in said[6]


@given(st.lists(st.floats(0.011, 0.989), max_size=12), st.integers(1, 4))
def test_a_policy_that_discerns_is_never_warned(ratios, patience):
    assert not any(warnings(ratios, patience))


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=12))
def test_all_calls_and_no_calls_in_turn_are_no_collapse(ratios):
    alternating = [1.0 if i % 2 else 0.0 for i in range(len(ratios))]
    assert not any(warnings(alternating, patience=2))


def test_no_patience_is_refused():
    with pytest.raises(ValueError, match=r"config\.learning\.collapse_patience"):
        collapse([1.0], patience=0)
