import dataclasses
import math
import time
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from offload_jax.evaluation import metrics
from offload_jax.evaluation.records import columns
from tests.evaluation.samples import many, record

OUTCOMES = st.lists(st.sampled_from(["right", "wrong", "call"]), min_size=1, max_size=40)
CAPS = st.floats(0, 1)
SEEDS = st.integers(0, 2**32)


def outcome(correct, prompt_ids=None):
    correct = np.array(correct, bool)
    ids = np.arange(correct.size) if prompt_ids is None else np.array(prompt_ids)
    return metrics.Outcome(
        ids, np.zeros(correct.size, bool), correct, correct, np.zeros(correct.size, bool)
    )


# --- the cap ---


@pytest.mark.parametrize("hundredths", range(101))
def test_the_cap_is_an_exact_floor(hundredths):
    for n in (7, 100, 1000, 10_000):
        exact = Fraction(hundredths, 100) * n
        assert metrics.offload_limit(n, hundredths / 100) == math.floor(exact)


def test_the_cap_that_rho_gives_is_thirty_percent_exactly():
    rho = 3 / 7
    cap = math.nextafter(0.3, 0)  # what rounding may leave of rho / (1 + rho)
    assert math.floor(cap * 1000) == 299  # so the plain formula would be wrong
    assert metrics.offload_limit(1000, cap) == metrics.offload_limit(1000, rho / (1 + rho)) == 300


@pytest.mark.parametrize("cap", [-0.1, 1.1, math.nan, math.inf])
def test_an_impossible_cap_is_refused(cap):
    with pytest.raises(ValueError, match=r"config\.evaluation\.cap"):
        metrics.offload_limit(10, cap)


@given(called=st.lists(st.booleans(), max_size=60), cap=CAPS, seed=SEEDS)
def test_the_cap_is_used_up_never_exceeded_and_spent_on_calls_alone(called, cap, seed):
    called = np.array(called, bool)
    offloaded = metrics.apply_cap(called, np.arange(called.size), cap, seed)
    assert not (offloaded & ~called).any()
    assert offloaded.sum() == min(called.sum(), metrics.offload_limit(called.size, cap))


@given(outcomes=OUTCOMES, cap=CAPS, seed=SEEDS, order=st.randoms())
def test_which_calls_survive_depends_on_the_prompt_not_on_the_order(outcomes, cap, seed, order):
    called = np.array([o == "call" for o in outcomes])
    ids = np.arange(called.size) * 17
    shuffle = order.sample(range(called.size), called.size)
    straight = metrics.apply_cap(called, ids, cap, seed)
    shuffled = metrics.apply_cap(called[shuffle], ids[shuffle], cap, seed)
    np.testing.assert_array_equal(straight[shuffle], shuffled)


def test_the_survivors_are_uniform_over_seeds():
    ids = np.arange(10)
    called = ids != 4
    counts = sum(metrics.apply_cap(called, ids, 0.3, seed).astype(int) for seed in range(3000))
    assert counts[4] == 0
    # Three of nine calls survive: 1000 of 3000, standard deviation 26.
    assert np.abs(counts[called] - 1000).max() < 4 * 26
    pairs = sum(metrics.apply_cap(called, ids, 0.2, seed)[:2].all() for seed in range(3000))
    assert abs(pairs - 3000 / 36) < 4 * 9  # so prompts 0 and 1 survive independently


def test_the_survivors_of_a_published_table_stay_the_same():
    # The same formula in Python's whole numbers; SplitMix64 from 0 begins with 0xE220A8397B1DCDAF.
    keys = metrics.priority(np.array([0, 1, 2]), seed=0)
    assert keys.tolist() == [12035550249420947055, 3069472533636442495, 9405607414650848140]
    assert metrics.priority(np.array([-0xE220A8397B1DCDAF % 2**64], np.uint64), seed=0)[0] == int(
        "E220A8397B1DCDAF", 16
    )


# --- outcomes ---


def test_accuracies_of_a_small_example_counted_by_hand():
    # Prompts 0-3 right, 4-5 wrong, 6-9 call; the cloud errs on prompt 6 only. Cap: two calls.
    outcomes = ["right"] * 4 + ["wrong"] * 2 + ["call"] * 4
    clouds = [None] * 6 + [False, True, True, True]
    results = columns(many(outcomes, clouds))
    survivors = set(np.array([6, 7, 8, 9])[np.argsort(metrics.priority(np.arange(6, 10), 0))[:2]])
    capped = metrics.capped(results, 0.2, seed=0)
    assert set(np.flatnonzero(capped.offloaded)) == survivors
    by_cloud = 2 - (6 in survivors)
    assert metrics.overall_accuracy(capped).value == (4 + by_cloud) / 10
    assert metrics.conditional_accuracy(capped).value == 4 / 8  # calls cut off are retained
    assert metrics.local_accuracy(results).value == 4 / 10
    assert metrics.call_ratio(results).value == 4 / 10
    assert metrics.offload_ratio(capped) == 2 / 10
    summary = metrics.summary(many(outcomes, clouds), 0.2, seed=0)
    assert summary["overall"] == (4 + by_cloud) / 10
    assert summary["conditional"] == 0.5
    assert summary["call_ratio"] == 0.4


def test_a_policy_that_always_calls_scores_the_cap_times_the_clouds_accuracy():
    n, cloud = 500, np.arange(500) < 470
    results = columns(many(["call"] * n, cloud.tolist()))
    scores = [
        metrics.overall_accuracy(metrics.capped(results, 0.3, seed)).value for seed in range(100)
    ]
    assert np.mean(scores) == pytest.approx(0.3 * cloud.mean(), abs=0.003)
    assert max(scores) <= 0.3
    assert metrics.conditional_accuracy(metrics.capped(results, 0.3, 0)).value == 0.0


def test_calls_over_the_cap_are_wrong_or_the_devices():
    calls = [record(i, "call", cloud=True, fallback=i % 2 == 0) for i in range(10)]
    others = [record(i, "right" if i < 15 else "wrong", cloud=False) for i in range(10, 20)]
    results = columns(calls + others)
    wrong, device = (metrics.capped(results, 0.2, 3, way) for way in ("wrong", "device"))
    np.testing.assert_array_equal(wrong.offloaded, device.offloaded)
    assert wrong.offloaded.sum() == 4 and wrong.correct.sum() == 4 + 5
    retained = ~device.offloaded[:10]
    assert device.correct.sum() == 9 + (retained & (np.arange(10) % 2 == 0)).sum()
    assert (device.retained_correct == (device.correct & ~device.offloaded)).all()


def test_the_device_answers_over_the_cap_only_where_its_answers_are_known():
    results = columns([record(0, "call", cloud=True), record(1, "right", cloud=True)])
    assert metrics.capped(results, 1.0, 0).correct.all()
    with pytest.raises(ValueError, match="when its call is refused is not known of 1 prompts"):
        metrics.capped(results, 1.0, 0, "device")


def test_the_papers_overall_accuracy_follows_from_its_conditional_one():
    # Qwen2.5-1.5B on MATH: 72.6 % of the retained, cloud 98.4 %, 30 % offloaded: 80.4 % (80.3).
    n = 1000
    clouds = [i >= 5 for i in range(300)] + [None] * 700
    outcomes = ["call"] * 300 + ["right"] * 508 + ["wrong"] * 192
    capped = metrics.capped(columns(many(outcomes, clouds)), 0.3, seed=0)
    assert metrics.conditional_accuracy(capped).value == pytest.approx(0.726, abs=5e-4)
    assert metrics.overall_accuracy(capped).value == (508 + 295) / n


def test_random_offloading_offloads_the_caps_share_whatever_the_device_did():
    outcomes = ["right", "wrong", "call", "wrong"] * 25
    results = columns(many(outcomes, [True] * 100))
    random = metrics.randomly_offloaded(results, 0.3, seed=3)
    assert random.offloaded.sum() == 30
    right_kept = sum(
        o == "right" and not off for o, off in zip(outcomes, random.offloaded, strict=True)
    )
    assert metrics.overall_accuracy(random).value == (30 + right_kept) / 100
    assert metrics.conditional_accuracy(random).value == right_kept / 70
    other = metrics.randomly_offloaded(results, 0.3, seed=4)
    assert (random.offloaded != other.offloaded).any()


def test_cloud_only_offloads_everything_and_leaves_no_conditional_accuracy():
    alone = metrics.cloud_only(columns(many(["right", "call", "wrong"], [True, True, False])))
    assert alone.correct.tolist() == [True, True, False]
    assert metrics.conditional_accuracy(alone) is None


def test_an_offloaded_prompt_without_a_cloud_answer_is_an_error_not_a_zero():
    results = columns(many(["call", "right"], [None, True]))
    with pytest.raises(ValueError, match="prompt 0"):
        metrics.capped(results, 1.0, seed=0)
    with pytest.raises(ValueError, match=r"random offloading needs .* 1 prompts"):
        metrics.randomly_offloaded(results, 1.0, seed=0)
    with pytest.raises(ValueError, match="cloud only"):
        metrics.cloud_only(results)


def test_a_policy_spends_its_attempt_on_every_prompt_and_the_cloud_on_the_offloaded_ones():
    # Samples: 3 device tokens and 0.5 s each; 50 cloud tokens, 2 s and 0.001 dollars when asked.
    results = columns(many(["right", "call", "call", "wrong"], [None, True, True, True]))
    outcome = metrics.capped(results, 0.25, seed=0)
    assert outcome.offloaded.sum() == 1
    assert metrics.usage(results, outcome) == {
        "device_tokens": 3.0,
        "cloud_tokens": 12.5,
        "device_seconds": 0.5,
        "cloud_seconds": 0.5,
        "seconds": 1.0,
        "dollars": 0.00025,
    }


def test_a_router_on_the_prompt_spares_the_device_the_offloaded_prompts():
    results = columns(many(["right", "wrong", "wrong", "wrong"], [True] * 4))
    outcome = metrics.randomly_offloaded(results, 0.25, seed=0)
    spared = metrics.usage(results, outcome, attempt_first=False)
    assert (spared["device_tokens"], spared["device_seconds"]) == (3 * 3 / 4, 3 * 0.5 / 4)
    assert spared["seconds"] == 3 * 0.5 / 4 + 2.0 / 4
    alone = metrics.usage(results, metrics.cloud_only(results), attempt_first=False)
    assert (alone["device_tokens"], alone["seconds"], alone["cloud_tokens"]) == (0.0, 2.0, 50.0)


def test_an_unknown_amount_is_none_only_where_it_is_spent():
    records = many(["call", "right"], [True, None])
    outcome = metrics.capped(columns(records), 0.5, seed=0)
    results = dataclasses.replace(columns(records), cost=np.array([np.nan, np.nan]))
    known = metrics.usage(results, outcome)
    assert known["dollars"] is None
    assert known["cloud_tokens"] == 25.0
    nothing = metrics.outcome_of(results, np.zeros(2, bool), "nothing")
    assert metrics.usage(results, nothing)["dollars"] == 0.0


# --- intervals ---


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)],
)
def test_wilson_gives_the_published_examples(successes, n, low, high):
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    interval = metrics.wilson(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@given(n=st.integers(1, 3000), data=st.data())
def test_wilson_contains_its_estimate_and_stays_a_share(n, data):
    successes = data.draw(st.integers(0, n))
    interval = metrics.wilson(successes, n)
    reference = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low == pytest.approx(reference.low, abs=1e-12)
    assert interval.high == pytest.approx(reference.high, abs=1e-12)


def test_wilson_refuses_a_share_of_nothing():
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="proportion"):
            metrics.wilson(successes, n)


def test_the_bootstrap_is_that_of_resampled_prompts():
    rng = np.random.default_rng(0)
    first, second = rng.random(200) < 0.7, rng.random(200) < 0.5
    fast = metrics.paired_difference(outcome(first), outcome(second))
    rows = rng.integers(200, size=(20_000, 200))
    slow = np.quantile((first[rows].mean(1) - second[rows].mean(1)), [0.025, 0.975])
    assert fast.value == pytest.approx(first.mean() - second.mean())
    np.testing.assert_allclose([fast.low, fast.high], slow, atol=0.006)


def test_the_bootstrap_interval_covers_the_truth_in_95_of_100_samples():
    rng = np.random.default_rng(1)
    hits, trials = 0, 300
    for _ in range(trials):
        shared = rng.random(400)  # correlated: both solve the easy prompts
        first, second = shared < 0.6, (shared < 0.4) | (rng.random(400) < 0.1)
        interval = metrics.paired_difference(outcome(first), outcome(second), resamples=2000)
        hits += interval.low <= 0.6 - (0.4 + 0.6 * 0.1) <= interval.high
    assert 0.91 <= hits / trials <= 0.98


def test_ten_thousand_resamples_are_fast_and_repeatable():
    rng = np.random.default_rng(2)
    first, second = outcome(rng.random(5000) < 0.7), outcome(rng.random(5000) < 0.6)
    began = time.perf_counter()
    assert metrics.paired_difference(first, second) == metrics.paired_difference(first, second)
    assert time.perf_counter() - began < 1.0


def test_pairing_makes_the_interval_of_nearly_equal_policies_narrow():
    first = np.arange(1000) % 2 == 0
    second = first.copy()
    second[:10] = ~second[:10]
    interval = metrics.paired_difference(outcome(first), outcome(second))
    assert interval.value == 0.0
    assert interval.high - interval.low < 0.02  # unpaired: 0.09


@pytest.mark.parametrize("compare", [metrics.paired_difference, metrics.mcnemar])
def test_policies_on_different_prompts_are_not_compared(compare):
    with pytest.raises(ValueError, match="same prompts, but 2 prompts, such as 2"):
        compare(outcome([1, 0, 1], [0, 1, 2]), outcome([1, 0, 1], [0, 1, 3]))
    with pytest.raises(ValueError, match="same prompts"):
        compare(outcome([1, 0, 1]), outcome([1, 0]))


@given(wins=st.integers(0, 80), losses=st.integers(0, 80), ties=st.integers(1, 20))
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_prompts(wins, losses, ties):
    first = outcome([1] * wins + [0] * losses + [1] * ties)
    second = outcome([0] * wins + [1] * losses + [1] * ties)
    p = metrics.mcnemar(first, second)
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_does_not_underflow_on_thousands_of_prompts():
    first, second = outcome([1] * 2500 + [0] * 2500), outcome([0] * 2500 + [1] * 2500)
    assert metrics.mcnemar(first, second) == 1.0
    assert metrics.mcnemar(outcome([1] * 5000), outcome([0] * 5000)) == 0.0


def test_metrics_do_not_depend_on_the_order_of_records():
    records = many(
        ["right", "call", "wrong", "call", "call"] * 8, [None, True, None, False, True] * 8
    )
    assert metrics.summary(records, 0.3, 1) == metrics.summary(records[::-1], 0.3, 1)
