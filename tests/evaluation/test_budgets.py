import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload_jax.evaluation import budgets, metrics
from offload_jax.evaluation.records import columns
from tests.evaluation.samples import many

# Few distinct values, so that ties are common.
SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=40)
CAPS = st.floats(0, 1)
SEEDS = st.integers(0, 2**32)
PROMPTS = st.lists(
    st.tuples(st.sampled_from(["right", "wrong", "call"]), st.booleans(), st.integers(-3, 3)),
    min_size=1,
    max_size=40,
)


def results_of(outcomes, clouds):
    return columns(many(outcomes, clouds))


def six():
    """Two prompts only the cloud solves, one only the device, one both, one neither, one call."""
    return results_of(
        ["wrong", "wrong", "right", "right", "wrong", "call"],
        [True, True, False, True, False, True],
    )


def prompts_with_scores(prompts):
    outcomes, clouds, scores = zip(*prompts, strict=True)
    return results_of(outcomes, clouds), np.array(scores, float)


def curve(*points):
    return budgets.Curve(*(np.array(axis, float) for axis in zip(*points, strict=True)))


# --- whom a score offloads ---


@given(scores=SCORES, seed=SEEDS, data=st.data())
def test_the_highest_scores_are_offloaded_first(scores, seed, data):
    scores = np.array(scores, float)
    limit = data.draw(st.integers(0, scores.size))
    chosen = budgets.top_scores(scores, np.arange(scores.size) * 17, limit, seed)
    assert chosen.sum() == limit
    if 0 < limit < scores.size:
        assert scores[chosen].min() >= scores[~chosen].max()


@given(scores=SCORES, seed=SEEDS, order=st.randoms())
def test_ties_are_broken_by_the_prompt_not_by_its_place(scores, seed, order):
    scores = np.array(scores, float)
    ids, limit = np.arange(scores.size) * 17, scores.size // 2
    shuffle = order.sample(range(scores.size), scores.size)
    straight = budgets.top_scores(scores, ids, limit, seed)
    shuffled = budgets.top_scores(scores[shuffle], ids[shuffle], limit, seed)
    np.testing.assert_array_equal(straight[shuffle], shuffled)


def test_equal_scores_offload_the_prompts_that_survive_a_cap():
    ids = np.arange(20)
    tied = budgets.top_scores(np.zeros(20), ids, 6, seed=3)
    np.testing.assert_array_equal(tied, metrics.apply_cap(np.ones(20, bool), ids, 0.3, seed=3))


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_finite_number_is_refused_with_its_prompt(score):
    scores, ids = np.array([0.0, score]), np.array([4, 7])
    for use in (
        lambda: budgets.top_scores(scores, ids, 1, 0),
        lambda: budgets.calibrate(scores, ids, 0.5, 0),
        lambda: budgets.thresholded(six(), np.array([0.0] * 5 + [score]), 0.0, 1.0, 0),
    ):
        with pytest.raises(ValueError, match=r"1 prompts, such as (7|5), are not"):
            use()


def test_scores_of_other_prompts_and_impossible_limits_are_refused():
    with pytest.raises(ValueError, match="3 prompts need as many scores, not 2"):
        budgets.top_scores(np.zeros(2), np.arange(3), 1, 0)
    for limit in (-1, 4):
        with pytest.raises(ValueError, match=f"of 3 prompts, {limit} cannot"):
            budgets.top_scores(np.zeros(3), np.arange(3), limit, 0)


@given(scores=SCORES, cap=CAPS, seed=SEEDS)
def test_a_calibrated_threshold_keeps_the_cap_and_uses_all_of_it_that_ties_allow(scores, cap, seed):
    scores = np.array(scores, float)
    limit = metrics.offload_limit(scores.size, cap)
    threshold = budgets.calibrate(scores, np.arange(scores.size), cap, seed)
    assert (scores > threshold).sum() <= limit
    lower = [t for t in [-math.inf, *scores] if t < threshold]
    assert all((scores > t).sum() > limit for t in lower)  # any lower one breaks the cap


def test_calibration_counted_by_hand():
    scores, ids = np.array([0.9, 0.1, 0.5, 0.5, 0.2]), np.arange(5)
    thresholds = [budgets.calibrate(scores, ids, cap / 5, 0) for cap in range(6)]
    assert thresholds == [0.9, 0.5, 0.5, 0.2, 0.1, -math.inf]


def test_a_threshold_makes_calls_and_the_cap_cuts_them_like_any_policys():
    results, scores = six(), np.array([0.9, 0.8, 0.7, 0.1, 0.6, 0.2])
    free = budgets.thresholded(results, scores, 0.5, 1.0, seed=0)
    assert free.offloaded.tolist() == [True, True, True, False, True, False]
    assert free.correct.tolist() == [True, True, False, True, False, False]  # 5 is a call: wrong
    capped = budgets.thresholded(results, scores, 0.5, 1 / 3, seed=0)
    expected = metrics.apply_cap(scores > 0.5, results.prompt_ids, 1 / 3, 0)
    np.testing.assert_array_equal(capped.offloaded, expected)
    assert budgets.thresholded(results, scores, 0.9, 1.0, seed=0).offloaded.sum() == 0
    with pytest.raises(ValueError, match="NaN"):
        budgets.thresholded(results, scores, math.nan, 1.0, seed=0)


# --- curves ---


def test_a_curve_counted_by_hand():
    # By falling score: prompt 5 (call, cloud right), 2 (device alone), 0 and 1 (cloud alone) ...
    scores = np.array([3, 2, 4, 1, 0, 5])
    whole = budgets.budget_curve(six(), scores, seed=0, points=7)
    np.testing.assert_allclose(whole.budgets, np.arange(7) / 6)
    np.testing.assert_allclose(whole.accuracy * 6, [2, 3, 2, 3, 4, 4, 4])


def test_a_curve_runs_from_the_devices_accuracy_to_the_clouds():
    for curve in (budgets.oracle_curve(six()), budgets.random_curve(six())):
        assert curve.budgets.size == curve.accuracy.size == 101
        assert (curve.budgets[0], curve.budgets[-1]) == (0, 1)
        np.testing.assert_allclose(curve.accuracy[[0, -1]], [2 / 6, 4 / 6])


@given(prompts=PROMPTS, seed=SEEDS, points=st.integers(2, 12))
def test_a_curve_is_the_accuracy_of_the_outcomes_at_its_budgets(prompts, seed, points):
    results, scores = prompts_with_scores(prompts)
    curve = budgets.budget_curve(results, scores, seed, points)
    for i, (budget, accuracy) in enumerate(zip(curve.budgets, curve.accuracy, strict=True)):
        limit = metrics.offload_limit(scores.size, i / (points - 1))
        assert budget == limit / scores.size
        chosen = budgets.top_scores(scores, results.prompt_ids, limit, seed)
        outcome = metrics.outcome_of(results, chosen, "test")
        assert accuracy == pytest.approx(outcome.correct.mean())


@given(prompts=PROMPTS, seed=SEEDS)
def test_no_score_beats_the_oracle_and_none_loses_to_its_reverse(prompts, seed):
    results, scores = prompts_with_scores(prompts)
    best = budgets.oracle_curve(results).accuracy
    worst = budgets.budget_curve(results, -budgets.oracle_scores(results), seed).accuracy
    for curve in (budgets.budget_curve(results, scores, seed), budgets.random_curve(results)):
        assert (curve.accuracy <= best + 1e-12).all()
        assert (curve.accuracy >= worst - 1e-12).all()


def test_the_oracle_takes_the_clouds_gains_first_and_its_losses_last():
    assert budgets.oracle_scores(six()).tolist() == [1, 1, -1, 0, 0, 1]
    curve = budgets.oracle_curve(six(), points=7)
    np.testing.assert_allclose(curve.accuracy * 6, [2, 3, 4, 5, 5, 5, 4])


def test_the_random_curve_is_the_mean_of_random_offloading_and_straight():
    rng = np.random.default_rng(0)
    outcomes = rng.choice(["right", "wrong", "call"], 60).tolist()
    results = results_of(outcomes, (rng.random(60) < 0.8).tolist())
    expected = budgets.random_curve(results, points=11)
    drawn = [budgets.budget_curve(results, np.zeros(60), seed, 11).accuracy for seed in range(2000)]
    np.testing.assert_allclose(np.mean(drawn, 0), expected.accuracy, atol=0.006)
    slopes = np.diff(expected.accuracy) / np.diff(expected.budgets)
    np.testing.assert_allclose(slopes, slopes[0])


def test_a_curve_needs_the_clouds_answer_to_every_prompt_and_two_points():
    partly = results_of(["right", "wrong"], [None, True])
    for draw in (budgets.oracle_curve, budgets.random_curve):
        with pytest.raises(ValueError, match=r"curve .* needs .* prompt 0"):
            draw(partly)
        with pytest.raises(ValueError, match="at least 2 points, not 1"):
            draw(six(), points=1)


# --- a curve in one number ---


def test_the_gap_recovered_is_zero_for_the_device_and_one_for_the_cloud():
    assert budgets.gap_recovered(0.5, 0.5, 0.9) == 0.0
    assert budgets.gap_recovered(0.9, 0.5, 0.9) == 1.0
    assert budgets.gap_recovered(0.8, 0.5, 0.9) == pytest.approx(0.75)
    assert budgets.gap_recovered(0.4, 0.5, 0.9) == pytest.approx(-0.25)
    for cloud in (0.5, 0.4):
        assert budgets.gap_recovered(0.5, 0.5, cloud) is None


def test_random_offloading_recovers_half_of_the_gap_on_average():
    assert budgets.apgr(budgets.random_curve(six(), 7)) == pytest.approx(0.5)


def test_the_average_gap_recovered_counted_by_hand():
    # Gap recovered 0, 1, 1: trapezoids 0.25 and 0.5.
    assert budgets.apgr(curve((0, 0.4), (0.5, 0.8), (1, 0.8))) == pytest.approx(0.75)
    assert budgets.apgr(curve((0, 0.8), (0.5, 0.9), (1, 0.8))) is None


def test_a_share_of_the_gap_counts_as_reached_at_the_first_budget_that_has_it():
    falling = curve((0, 0.4), (0.2, 0.6), (0.4, 0.5), (0.6, 0.7), (0.8, 0.9), (1, 0.8))
    assert budgets.calls_to_reach(falling, 0.5) == 0.2  # although it falls again
    assert budgets.calls_to_reach(falling, 0.51) == 0.6
    assert budgets.calls_to_reach(falling, 1.0) == 0.8
    assert budgets.calls_to_reach(falling, 1.25) == 0.8  # beyond the cloud itself
    assert budgets.calls_to_reach(falling, 1.5) is None
    assert budgets.calls_to_reach(curve((0, 0.8), (0.5, 0.9), (1, 0.8)), 0.5) is None


def test_a_share_that_is_reached_exactly_is_not_missed_by_rounding():
    device, cloud = 0.1, 0.7
    for tenths in range(1, 11):
        accuracy = (1 * (10 - tenths) + 7 * tenths) / 100
        steps = curve((0, device), (0.5, accuracy), (1, cloud))
        assert budgets.calls_to_reach(steps, tenths / 10) == 0.5


def test_the_area_under_the_hull_counted_by_hand():
    # The dent at 0.25 is bridged by the chord 0.4-0.8, the fall at 1 by unused budget.
    dented = curve((0, 0.4), (0.25, 0.3), (0.5, 0.8), (0.75, 0.7), (1, 0.6))
    assert budgets.aiq(dented) == pytest.approx(0.5 * 0.6 + 0.5 * 0.8)
    assert budgets.aiq(curve((0, 0.4), (1, 0.8))) == pytest.approx(0.6)
    assert budgets.aiq(curve((0, 0.8), (1, 0.4))) == pytest.approx(0.8)  # nobody has to call


@given(prompts=PROMPTS, seed=SEEDS)
def test_the_hull_is_that_of_all_chords_and_no_area_exceeds_the_oracles(prompts, seed):
    results, scores = prompts_with_scores(prompts)
    curve = budgets.budget_curve(results, scores, seed, points=scores.size + 1)
    x, y = curve.budgets, np.maximum.accumulate(curve.accuracy)
    hull = [
        max(
            np.interp(at, [x[i], x[j]], [y[i], y[j]])
            for i in range(x.size)
            for j in range(i, x.size)
            if x[i] <= at <= x[j]
        )
        for at in x
    ]
    area = budgets.aiq(curve)
    assert area == pytest.approx(np.trapezoid(hull, x))
    assert area <= budgets.aiq(budgets.oracle_curve(results, scores.size + 1)) + 1e-12


@given(prompts=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_auroc_is_the_share_of_pairs_in_the_right_order(prompts):
    scores, positive = (np.array(column) for column in zip(*prompts, strict=True))
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    expected = pytest.approx(np.mean(pairs)) if pairs else None
    assert budgets.auroc(scores, positive) == expected


def test_a_constant_score_finds_half_and_a_perfect_one_all():
    positive = np.array([True, False, True, False, False])
    assert budgets.auroc(np.zeros(5), positive) == 0.5
    assert budgets.auroc(positive.astype(float), positive) == 1.0
    assert budgets.auroc(-positive.astype(float), positive) == 0.0


# --- what routing did ---


def test_the_routing_table_counted_by_hand():
    results = six()
    offloaded = np.array([True, False, True, False, True, False])
    table = budgets.routing_table(results, metrics.outcome_of(results, offloaded, "test"))
    assert table.right_offloads == 1 / 6  # prompt 0
    assert table.missed == 2 / 6  # prompts 1 and 5, the call that was retained
    assert table.needless == 1 / 6  # prompt 2: the device was right, even if the cloud is not
    assert table.right_retains == 1 / 6  # prompt 3
    assert table.both_wrong == 1 / 6  # prompt 4


@given(prompts=PROMPTS, others=st.data(), cap=CAPS, seed=SEEDS)
def test_every_prompt_is_in_one_cell_of_the_routing_table(prompts, others, cap, seed):
    results, scores = prompts_with_scores(prompts)
    outcome = budgets.thresholded(results, scores, 0.0, cap, seed)
    swapped = others.draw(
        st.lists(st.sampled_from(["right", "wrong"]), min_size=len(prompts), max_size=len(prompts))
    )
    before = results_of(swapped, results.cloud_correct.tolist())
    for witness in (results, before):
        table = budgets.routing_table(witness, outcome)
        assert sum(dataclasses.astuple(table)) == pytest.approx(1)
        assert table.right_retains == outcome.retained_correct.mean()


def test_a_policys_own_calls_are_needless_only_by_the_word_of_another_policy():
    calls = results_of(["call", "call", "wrong"], [True, True, True])
    outcome = metrics.capped(calls, 1.0, seed=0)
    assert budgets.routing_table(calls, outcome).needless == 0
    before = results_of(["right", "wrong", "right"], [True, True, True])
    table = budgets.routing_table(before, outcome)
    assert (table.needless, table.right_offloads, table.missed) == (1 / 3, 1 / 3, 1 / 3)


def test_a_routing_table_needs_the_cloud_where_the_device_missed():
    known_enough = results_of(["right", "wrong"], [None, True])
    table = budgets.routing_table(
        known_enough, metrics.outcome_of(known_enough, np.zeros(2, bool), "test")
    )
    assert table.missed == 0.5
    unknown = results_of(["right", "wrong"], [True, None])
    with pytest.raises(ValueError, match=r"routing table needs .* prompt 1"):
        budgets.routing_table(unknown, metrics.outcome_of(unknown, np.zeros(2, bool), "test"))
