"""Scores and budgets: whom a score offloads at each budget, and what that is worth. Pure numpy.

A score is a number per prompt: the higher, the sooner the prompt is offloaded. Definitions and
their sources: docs/metrics.md.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from offload_jax.evaluation.metrics import (
    Outcome,
    apply_cap,
    offload_limit,
    outcome_of,
    priority,
    require_cloud,
)
from offload_jax.evaluation.records import Columns, check_same_prompts

# --- whom a score offloads ---


def _ranked(
    scores: Float[np.ndarray, " n"], prompt_ids: Int[np.ndarray, " n"], seed: int
) -> Int[np.ndarray, " n"]:
    """Indices by falling score, ties by `priority`."""
    scores = _checked(scores, prompt_ids)
    return np.lexsort((priority(prompt_ids, seed), -scores))


def _checked(scores, prompt_ids) -> Float[np.ndarray, " n"]:
    scores, prompt_ids = np.asarray(scores, float), np.asarray(prompt_ids)
    if scores.shape != prompt_ids.shape:
        raise ValueError(f"{prompt_ids.size} prompts need as many scores, not {scores.size}")
    missing = prompt_ids[~np.isfinite(scores)]
    if missing.size:
        raise ValueError(
            f"scores must be finite numbers, but those of {missing.size} prompts, such as "
            f"{missing[0]}, are not"
        )
    return scores


def top_scores(
    scores: Float[np.ndarray, " n"], prompt_ids: Int[np.ndarray, " n"], limit: int, seed: int
) -> Bool[np.ndarray, " n"]:
    """The `limit` prompts with the highest scores; ties are broken by `priority`.

    Raises ValueError where a score is not finite or `limit` is not between 0 and n.
    """
    ranked = _ranked(scores, prompt_ids, seed)
    if not 0 <= limit <= ranked.size:
        raise ValueError(f"of {ranked.size} prompts, {limit} cannot be offloaded")
    chosen = np.zeros(ranked.size, bool)
    chosen[ranked[:limit]] = True
    return chosen


def calibrate(
    scores: Float[np.ndarray, " m"], prompt_ids: Int[np.ndarray, " m"], cap: float, seed: int
) -> float:
    """The threshold t for which `score > t` offloads floor(cap * m) of these validation prompts.

    Where a tie stands across the limit, all of the tie are retained: fewer, never more. So t is
    the highest score that stays on the device, -inf where none does.
    """
    chosen = top_scores(scores, prompt_ids, offload_limit(np.size(scores), cap), seed)
    return float(np.max(np.asarray(scores, float)[~chosen], initial=-np.inf))


def thresholded(
    results: Columns, scores: Float[np.ndarray, " n"], threshold: float, cap: float, seed: int
) -> Outcome:
    """A router as a policy: it calls where score > threshold, and the cap cuts its calls.

    Which calls survive is `apply_cap`'s random draw, as for any policy. A call that is cut, like
    any retained prompt, has the device's response; if that is a call itself, it is wrong.
    """
    if np.isnan(threshold):
        raise ValueError("a threshold on scores must be a number, not NaN")
    calls = _checked(scores, results.prompt_ids) > threshold
    return outcome_of(
        results, apply_cap(calls, results.prompt_ids, cap, seed), "thresholded offloading"
    )


# --- accuracy at every budget ---


@dataclass(frozen=True)
class Curve:
    """Accuracy against calls, from none to all.

    Attributes:
        budgets: ascending shares of the n prompts that are offloaded, 0 first and 1 last; each is
            a whole number of prompts / n.
        accuracy: overall accuracy there. At budget 0 it is the device's local accuracy, at 1 the
            cloud's.
    """

    budgets: Float[np.ndarray, " b"]
    accuracy: Float[np.ndarray, " b"]


def budget_curve(
    results: Columns, scores: Float[np.ndarray, " n"], seed: int, points: int = 101
) -> Curve:
    """Overall accuracy when the floor(b * n) prompts with the highest scores are offloaded.

    Args:
        results: one policy's records; the cloud's answer to every prompt is needed.
        scores: the higher, the sooner offloaded.
        seed: breaks ties.
        points: number of budgets b, evenly spaced over [0, 1].

    A retained prompt whose response is a call is wrong, at every budget.
    """
    return _curve(results, _ranked(scores, results.prompt_ids, seed), points)


def _limits(n: int, points: int) -> Int[np.ndarray, " points"]:
    if points < 2:
        raise ValueError(f"a curve needs at least 2 points, not {points}")
    return np.arange(points) * n // (points - 1)  # whole numbers: an exact floor


def _gain(results: Columns) -> Int[np.ndarray, " n"]:
    """What offloading a prompt changes: 1 where only the cloud is right, -1 only the device.

    Where the cloud fails the device answers after all, by its fallback if its response was a call.
    """
    require_cloud(results, np.ones(results.prompt_ids.size, bool), "a curve over all budgets")
    kept = results.device_correct | results.fallback_correct
    answered = np.where(results.cloud_failed, kept, results.cloud_correct)
    return answered.astype(int) - results.device_correct.astype(int)


def _curve(results: Columns, order: Int[np.ndarray, " n"], points: int) -> Curve:
    n = order.size
    limits = _limits(n, points)
    gained = np.concatenate([[0], np.cumsum(_gain(results)[order])])[limits]
    return Curve(limits / n, (results.device_correct.sum() + gained) / n)


def random_curve(results: Columns, points: int = 101) -> Curve:
    """The expected curve of random offloading: the straight line from the device to the cloud."""
    n = results.prompt_ids.size
    budgets = _limits(n, points) / n
    return Curve(budgets, results.device_correct.mean() + budgets * _gain(results).mean())


def oracle_scores(results: Columns) -> Int[np.ndarray, " n"]:
    """Scores that no router beats at any budget: 1, 0 or -1.

    First comes what the device misses and the cloud solves, then what both or neither solve, last
    what the device alone solves.
    """
    return _gain(results)


def oracle_curve(results: Columns, points: int = 101) -> Curve:
    """The highest accuracy at every budget, given the device's responses and the cloud's."""
    return budget_curve(results, oracle_scores(results), seed=0, points=points)


# --- a curve in one number ---


def gap_recovered(accuracy: float, device: float, cloud: float) -> float | None:
    """PGR: (accuracy - device) / (cloud - device) (RouteLLM, arXiv 2406.18665).

    0 is the device alone, 1 the cloud alone; below 0 and above 1 are possible. None where the
    cloud is no better than the device: there is no gap.
    """
    return (accuracy - device) / (cloud - device) if cloud > device else None


def apgr(curve: Curve) -> float | None:
    """APGR: the mean of the gap recovered over budgets 0 to 1 (RouteLLM), by trapezoids.

    Random offloading has 0.5. None where there is no gap.
    """
    area = float(np.trapezoid(curve.accuracy, curve.budgets))
    return gap_recovered(area, float(curve.accuracy[0]), float(curve.accuracy[-1]))


def calls_to_reach(curve: Curve, share: float) -> float | None:
    """CPT: the smallest budget at which the gap recovered is at least `share` (RouteLLM).

    A curve may fall again after it. The first budget counts all the same, because a budget is the
    most that may be spent: whoever has more need not use it. There is no interpolation: the answer
    is a budget of the curve. None where there is no gap or no budget reaches the share.
    """
    device, cloud = float(curve.accuracy[0]), float(curve.accuracy[-1])
    if cloud <= device:
        return None
    # The slack keeps rounding from missing a share that is reached exactly.
    reached = curve.accuracy >= device + share * (cloud - device) - 1e-12
    return float(curve.budgets[np.argmax(reached)]) if reached.any() else None


def aiq(curve: Curve) -> float:
    """AIQ: the area under the non-decreasing concave hull of the curve (RouterBench, 2403.12031).

    RouterBench calls the hull convex. Its chords are reached by choosing between two budgets at
    random, its flat end by leaving budget unused. The cost axis is the share of calls, from 0
    to 1, so the area is a mean accuracy.
    """
    best = np.maximum.accumulate(curve.accuracy)
    hull: list[tuple[float, float]] = []
    for point in zip(curve.budgets.tolist(), best.tolist(), strict=True):
        while len(hull) > 1 and not _above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    budgets, accuracy = zip(*hull, strict=True)
    return float(np.trapezoid(accuracy, budgets))


def _above(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]):
    """Whether the middle point lies above the chord from left to right."""
    run, rise = right[0] - left[0], right[1] - left[1]
    return (middle[1] - left[1]) * run > (middle[0] - left[0]) * rise


def auroc(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float | None:
    """The chance that a positive prompt has a higher score than a negative one; a tie counts half.

    The Mann-Whitney statistic over the number of pairs (Hanley and McNeil, 1982). None where all
    prompts are positive or none is. `positive` is, for example, that the device errs.
    """
    positive = np.asarray(positive, bool)
    scores = _checked(scores, np.arange(positive.size))
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    _, value, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[value]  # from 1; equals share their mean rank
    wins = rank[positive].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


# --- what routing did ---


@dataclass(frozen=True)
class RoutingTable:
    """Shares of all n prompts, not of the offloaded or the retained ones; they add up to 1.

    Attributes:
        needless: offloaded although the device was right (whether or not the cloud was).
        missed: retained although the device was wrong and the cloud right.
        right_offloads: offloaded where the device was wrong and the cloud right.
        right_retains: retained where the device was right.
        both_wrong: neither was right, whoever answered: no routing helps.
    """

    needless: float
    missed: float
    right_offloads: float
    right_retains: float
    both_wrong: float


def routing_table(results: Columns, outcome: Outcome) -> RoutingTable:
    """Sorts every prompt by who answered it and who could have.

    A response that calls is not an answer, so by the records of a policy that calls by itself no
    offload of its own is needless. Give `results` of another policy (say, the one before it learnt
    to call) to ask whether that one would have been right. `results` speak for the offloaded
    prompts and for the cloud, `outcome` for the retained ones. Raises ValueError where the prompts
    differ or the cloud's answer to a prompt that the device missed is not known.
    """
    check_same_prompts(results, outcome)
    offloaded = outcome.offloaded
    device = np.where(offloaded, results.device_correct, outcome.retained_correct)
    require_cloud(results, ~device, "the routing table")
    cloud = results.cloud_correct
    return RoutingTable(
        needless=float((offloaded & device).mean()),
        missed=float((~offloaded & ~device & cloud).mean()),
        right_offloads=float((offloaded & ~device & cloud).mean()),
        right_retains=float((~offloaded & device).mean()),
        both_wrong=float((~device & ~cloud).mean()),
    )
