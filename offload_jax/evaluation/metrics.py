"""What the test results mean: the cap on calls, accuracies, intervals. Pure numpy, no state.

The path is always Columns -> Outcome (one way of offloading, prompt by prompt) -> a number with
its interval. Definitions and their sources: docs/metrics.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, UInt64

from offload_jax.evaluation.records import (
    Columns,
    Record,
    check_same_prompts,
    columns,
    without_calls,
)

OverCap = Literal["wrong", "device"]  # what becomes of a call beyond the cap


@dataclass(frozen=True)
class Outcome:
    """How each of n test prompts fared under one way of offloading, by ascending prompt id.

    Attributes:
        prompt_ids: distinct prompt ids.
        offloaded: the cloud answered the prompt.
        retained_correct: the device answered it, and was right.
        correct: whoever answered was right.
        degraded: the cloud was to answer it and failed, so that the device did.
    """

    prompt_ids: Int[np.ndarray, " n"]
    offloaded: Bool[np.ndarray, " n"]
    retained_correct: Bool[np.ndarray, " n"]
    correct: Bool[np.ndarray, " n"]
    degraded: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Estimate:
    """A number with the two ends of its 95 % interval, as shares (0.5, not 50)."""

    value: float
    low: float
    high: float


# --- who is offloaded ---


def offload_limit(n: int, cap: float) -> int:
    """floor(cap * n), exact for the fraction that `cap` stands for.

    0.29 * 100 is 28.999... in floating point, and the rho/(1+rho) of rho = 3/7 misses 0.3; so `cap`
    is first read as the nearest fraction with a denominator of at most a million.
    """
    if not 0.0 <= cap <= 1.0:
        raise ValueError(f"config.evaluation.cap must lie between 0 and 1, not {cap}")
    return math.floor(Fraction(float(cap)).limit_denominator(10**6) * n)


def priority(prompt_ids: Int[np.ndarray, " n"], seed: int) -> UInt64[np.ndarray, " n"]:
    """A pseudo-random rank key per prompt, a function of its id and the seed alone.

    SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64-bit words, so that distinct prompts
    never tie, and an integer formula, so that no library version changes a published table.
    """

    def mix(z):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    offset = mix(np.array([seed % 2**64], np.uint64))
    return mix(np.asarray(prompt_ids).astype(np.uint64) + offset)


def apply_cap(
    called: Bool[np.ndarray, " n"], prompt_ids: Int[np.ndarray, " n"], cap: float, seed: int
) -> Bool[np.ndarray, " n"]:
    """Which calls the cloud answers: at most floor(cap * n) of n prompts are offloaded.

    The calls with the lowest `priority` survive: uniformly random over seeds, and independent of
    the records' order. The paper does not say which survive.
    """
    called = np.asarray(called, bool)
    limit = offload_limit(called.size, cap)
    callers = np.flatnonzero(called)
    ranked = callers[np.argsort(priority(prompt_ids, seed)[callers])]
    offloaded = np.zeros(called.size, bool)
    offloaded[ranked[:limit]] = True
    return offloaded


def require_cloud(results: Columns, needed: Bool[np.ndarray, " n"], what: str) -> None:
    """Raises ValueError where the cloud's answer to a prompt that `what` needs is not known."""
    unknown = results.prompt_ids[needed & ~results.cloud_known & ~results.cloud_failed]
    if unknown.size:
        raise ValueError(
            f"{what} needs the cloud's answer to {unknown.size} prompts that the records of "
            f"{results.policy} lack, such as prompt {unknown[0]}"
        )


def outcome_of(results: Columns, offloaded: Bool[np.ndarray, " n"], name: str) -> Outcome:
    """The outcome where the cloud answers the prompts `offloaded`; `name` names the way in errors.

    A retained prompt whose response is a call has no answer: it is wrong. Where the cloud was asked
    and failed, the device answers after all, by its fallback if its response was a call. Raises
    ValueError where it is not known what the cloud said to an offloaded prompt.
    """
    require_cloud(results, offloaded, name)
    degraded = offloaded & results.cloud_failed
    offloaded = offloaded & ~degraded
    answered = results.device_correct | (degraded & results.fallback_correct)
    retained_correct = answered & ~offloaded
    return Outcome(
        prompt_ids=results.prompt_ids,
        offloaded=offloaded,
        retained_correct=retained_correct,
        correct=np.where(offloaded, results.cloud_correct, retained_correct),
        degraded=degraded,
    )


def capped(results: Columns, cap: float, seed: int, over_cap: OverCap = "wrong") -> Outcome:
    """The policy's own calls, up to the cap.

    A call beyond it is not solved again, so it is "wrong", as the paper's numbers imply; or the
    "device" answers without the offer to call, by its fallback. Raises ValueError where that
    is not known.
    """
    offloaded = apply_cap(results.called, results.prompt_ids, cap, seed)
    retained = without_calls(results) if over_cap == "device" else results
    return outcome_of(retained, offloaded, "offloading")


def randomly_offloaded(results: Columns, cap: float, seed: int) -> Outcome:
    """The rival that ignores the policy's calls and offloads random prompts up to the cap.

    A retained prompt whose response is a call has no answer: it is wrong.
    """
    everyone = np.ones(results.prompt_ids.size, bool)
    offloaded = apply_cap(everyone, results.prompt_ids, cap, seed)
    return outcome_of(results, offloaded, "random offloading")


def cloud_only(results: Columns) -> Outcome:
    """Every prompt is offloaded, without a cap."""
    return outcome_of(results, np.ones(results.prompt_ids.size, bool), "cloud only")


# --- numbers with intervals ---


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """A proportion with Wilson's score interval (Wilson, 1927).

    Unlike p +- 1.96 s it stays inside [0, 1] and keeps its width at 0 and n successes.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0, not {successes}/{n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # The ends are exactly 0 and 1 there; rounding must not push them past the estimate.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Estimate(p, low, high)


def _share(hits: Bool[np.ndarray, " n"]) -> Estimate:
    return wilson(int(hits.sum()), hits.size)


def overall_accuracy(outcome: Outcome) -> Estimate:
    """Share of prompts answered correctly by whoever answered."""
    return _share(outcome.correct)


def conditional_accuracy(outcome: Outcome) -> Estimate | None:
    """Device-correct prompts / prompts retained; None where all are offloaded."""
    retained = int((~outcome.offloaded).sum())
    return wilson(int(outcome.retained_correct.sum()), retained) if retained else None


def local_accuracy(results: Columns) -> Estimate:
    """Share of prompts that the device answers correctly by itself; a call is not an answer."""
    return _share(results.device_correct)


def call_ratio(results: Columns) -> Estimate:
    """Share of prompts whose response asks for the cloud, before any cap."""
    return _share(results.called)


def offload_ratio(outcome: Outcome) -> float:
    """Share of prompts that the cloud answered, after the cap."""
    return float(outcome.offloaded.mean())


def usage(
    results: Columns, outcome: Outcome, attempt_first: bool = True
) -> dict[str, float | None]:
    """What a prompt takes on average: tokens on each side, seconds and dollars.

    The cloud's part is spent on offloaded prompts alone. The device and the cloud work one after
    the other, so their seconds add up.

    Args:
        results: the records that the outcome was made from.
        outcome: who answered what.
        attempt_first: the device attempts every prompt, and whoever offloads has seen the attempt.
            False for a router on the prompt alone and for cloud only: an offloaded prompt then
            costs the device nothing.

    Returns:
        `device_tokens`, `cloud_tokens` (generated), `device_seconds`, `cloud_seconds`, `seconds`
        (their sum) and `dollars`, per prompt; None where the records lack a part of it.
    """
    check_same_prompts(results, outcome)
    attempted = np.ones_like(outcome.offloaded) if attempt_first else ~outcome.offloaded
    device_seconds = np.where(attempted, results.device_seconds, 0.0)
    # np.where, not a product: an unknown amount that is not spent must not spoil the mean.
    cloud_seconds = np.where(outcome.offloaded, results.cloud_seconds, 0.0)
    spent = {
        "device_tokens": np.where(attempted, results.device_tokens, 0),
        "cloud_tokens": np.where(outcome.offloaded, results.cloud_tokens, 0.0),
        "device_seconds": device_seconds,
        "cloud_seconds": cloud_seconds,
        "seconds": device_seconds + cloud_seconds,
        "dollars": np.where(outcome.offloaded, results.cost, 0.0),
    }
    means = {name: float(amounts.mean()) for name, amounts in spent.items()}
    return {name: None if math.isnan(mean) else mean for name, mean in means.items()}


def summary(records: Sequence[Record], cap: float, seed: int) -> dict[str, float | None]:
    """One policy's numbers by name, for a log: values only, as shares."""
    results = columns(records)
    outcome = capped(results, cap, seed)
    conditional = conditional_accuracy(outcome)
    return {
        "overall": overall_accuracy(outcome).value,
        "conditional": conditional.value if conditional else None,
        "local": local_accuracy(results).value,
        "call_ratio": call_ratio(results).value,
        "offload_ratio": offload_ratio(outcome),
        "degraded": float(outcome.degraded.mean()),
        "device_tokens": float(results.device_tokens.mean()),
    }


# --- two policies on the same prompts ---


def paired_difference(
    first: Outcome, second: Outcome, seed: int = 0, resamples: int = 10_000
) -> Estimate:
    """Overall accuracy of `first` minus that of `second`, with a paired bootstrap interval.

    Prompts are resampled, each with both outcomes; the interval is the 2.5 and 97.5 percentiles
    (Efron and Tibshirani, 1993, ch. 13). A prompt's difference is -1, 0 or 1, so a resample is
    fully described by how often each occurs: one multinomial draw instead of n indices.
    Raises ValueError where the prompts differ.
    """
    check_same_prompts(first, second)
    difference = first.correct.astype(int) - second.correct.astype(int)
    values, counts = np.unique(difference, return_counts=True)
    n = difference.size
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.quantile(draws @ values / n, [0.025, 0.975])
    return Estimate(float(difference.mean()), float(low), float(high))


def mcnemar(first: Outcome, second: Outcome) -> float:
    """Exact two-sided p-value that both are right equally often (McNemar, 1947; binomial form).

    Of the prompts that exactly one solves, each is equally likely to be either's under the null.
    """
    check_same_prompts(first, second)
    wins = int((first.correct & ~second.correct).sum())
    losses = int((second.correct & ~first.correct).sum())
    total, term, tail = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):  # whole numbers: no underflow at thousands of prompts
        tail += term
        term = term * (total - k) // (k + 1)
    return min(1.0, 2 * tail / 2**total)
