import itertools
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload_jax.evaluation import seeds
from offload_jax.evaluation.metrics import Outcome, mcnemar, paired_difference


def outcome(correct, first_id=0):
    correct = np.array(correct, bool)
    ids = np.arange(first_id, first_id + correct.size)
    return Outcome(
        ids, np.zeros(correct.size, bool), correct, correct, np.zeros(correct.size, bool)
    )


def method(rng, accuracy, n):
    return [outcome(rng.random(n) < a) for a in accuracy]


def test_the_deviation_over_seeds_is_the_samples_and_one_seed_has_none():
    assert seeds.mean_and_deviation([0.7, 0.8, 0.9]) == pytest.approx((0.8, 0.1))
    assert seeds.mean_and_deviation([0.7]) == (0.7, None)
    for values in ([], [0.5, float("nan")]):
        with pytest.raises(ValueError, match="finite numbers"):
            seeds.mean_and_deviation(values)


def test_the_pooled_difference_is_the_mean_over_seeds_and_prompts():
    firsts = [outcome([1, 1, 1, 0]), outcome([1, 1, 0, 0])]
    seconds = [outcome([0, 1, 1, 0]), outcome([0, 0, 0, 1])]
    assert seeds.pooled_difference(firsts, seconds).value == (1 + 1) / 8


def test_identical_seeds_say_no_more_than_one():
    rng = np.random.default_rng(0)
    first, second = method(rng, [0.7, 0.6], 500)
    one = paired_difference(first, second)
    for k in (1, 2, 5):
        pooled = seeds.pooled_difference([first] * k, [second] * k)
        assert pooled.value == pytest.approx(one.value)
        # Monte Carlo error of a percentile of 10,000 draws with deviation 0.03: about 0.001.
        assert pooled.low == pytest.approx(one.low, abs=0.004)
        assert pooled.high == pytest.approx(one.high, abs=0.004)


def test_the_crossed_bootstrap_is_that_of_resampled_seeds_and_prompts():
    rng = np.random.default_rng(1)
    firsts, seconds = method(rng, [0.8, 0.6, 0.5], 80), method(rng, [0.5, 0.5, 0.5], 80)
    fast = seeds.pooled_difference(firsts, seconds, resamples=20_000)
    difference = np.stack(
        [f.correct * 1.0 - s.correct for f, s in zip(firsts, seconds, strict=True)]
    )
    slow = [
        difference[np.ix_(rng.integers(3, size=2), rng.integers(80, size=80))].mean()
        for _ in range(20_000)
    ]
    np.testing.assert_allclose([fast.low, fast.high], np.quantile(slow, [0.025, 0.975]), atol=0.01)


def test_seeds_that_disagree_widen_the_interval_however_many_prompts_there_are():
    n = 4000
    share = np.arange(n) / n
    firsts = [outcome(share < a) for a in (0.9, 0.5, 0.7, 0.6, 0.8)]
    seconds = [outcome(share < 0.5)] * 5
    pooled = seeds.pooled_difference(firsts, seconds)
    # Five means 0, 0.1, 0.2, 0.3, 0.4: standard error 0.158 / sqrt(5) = 0.071.
    assert pooled.value == pytest.approx(0.2)
    assert pooled.high - pooled.low == pytest.approx(2 * 1.96 * 0.071, rel=0.15)
    assert pooled.low > 0


@pytest.mark.parametrize(("spread", "floor"), [(0.0, 0.93), (0.04, 0.9)])
def test_the_pooled_interval_covers_the_truth_when_seeds_and_prompts_vary(spread, floor):
    """If only prompts were resampled, 70 % at the larger spread."""
    rng = np.random.default_rng(2)
    hits, trials, k, n = 0, 150, 5, 1000
    for _ in range(trials):
        ease = rng.random(n)  # the same prompts for all seeds and both methods
        skill = 0.6 + spread * rng.standard_normal(k)
        noise = [(rng.random(n) < 0.1) for _ in range(2 * k)]
        firsts = [outcome((ease < s) ^ e) for s, e in zip(skill, noise[:k], strict=True)]
        seconds = [outcome((ease < 0.5) ^ e) for e in noise[k:]]
        interval = seeds.pooled_difference(firsts, seconds, resamples=500)
        hits += interval.low <= 0.1 * 0.8 <= interval.high
    assert floor <= hits / trials


def test_methods_with_other_seeds_or_prompts_are_not_pooled():
    for compare in (seeds.pooled_difference, seeds.pooled_p):
        with pytest.raises(ValueError, match="they have 2 and 1 seeds"):
            compare([outcome([1, 0])] * 2, [outcome([1, 0])])
        with pytest.raises(ValueError, match="they have 0 and 0 seeds"):
            compare([], [])
        with pytest.raises(ValueError, match="same prompts"):
            compare([outcome([1, 0])] * 2, [outcome([1, 0]), outcome([1, 0], first_id=1)])


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_with_one_seed_the_p_value_is_mcnemars(pairs):
    first, second = (outcome(column) for column in zip(*pairs, strict=True))
    assert seeds.pooled_p([first], [second]) == mcnemar(first, second)


def test_the_p_value_is_that_of_all_sign_flips():
    rng = np.random.default_rng(3)
    firsts, seconds = method(rng, [0.8, 0.7, 0.8], 12), method(rng, [0.5, 0.4, 0.4], 12)
    means = np.mean([f.correct * 1.0 - s.correct for f, s in zip(firsts, seconds, strict=True)], 0)
    flips = np.array(list(itertools.product([-1, 1], repeat=12)))
    exact = (np.abs(flips @ means) >= abs(means.sum()) - 1e-9).mean()
    assert 0.001 < exact < 0.5
    assert seeds.pooled_p(firsts, seconds) == pytest.approx(exact, abs=4 * (exact / 1e5) ** 0.5)


def test_more_copies_of_a_seed_are_no_more_evidence():
    rng = np.random.default_rng(4)
    first, second = method(rng, [0.6, 0.5], 200)
    once = mcnemar(first, second)
    assert seeds.pooled_p([first] * 5, [second] * 5) == pytest.approx(once, abs=0.01)


def test_the_p_value_is_uniform_where_the_methods_are_equal_and_prompts_are_shared():
    rng = np.random.default_rng(5)
    values = []
    for _ in range(400):
        ease = rng.random((2, 100))  # per method: seeds of one method agree about a prompt
        noise = rng.random((2, 3, 100)) < 0.2
        firsts, seconds = (
            [outcome((e < 0.5) ^ m) for m in n] for e, n in zip(ease, noise, strict=True)
        )
        values.append(seeds.pooled_p(firsts, seconds, resamples=2000))
    assert 0.02 <= np.mean(np.array(values) <= 0.05) <= 0.085
    assert statistics.fmean(values) == pytest.approx(0.5, abs=0.06)


def test_equal_methods_have_p_one_and_no_p_is_zero():
    same = [outcome([1, 0, 1])] * 2
    assert seeds.pooled_p(same, same) == 1.0
    every, none = [outcome([1] * 300)] * 2, [outcome([0] * 300)] * 2
    assert 0 < seeds.pooled_p(every, none) < 1e-4
