"""Several training runs of one method on the same prompts, pooled. Pure numpy.

Two things vary: which prompts are asked, and which seed trained. Definitions: docs/metrics.md.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from offload_jax.evaluation.metrics import Estimate, Outcome, mcnemar
from offload_jax.evaluation.records import check_same_prompts


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1) over seeds; no deviation of a single value.

    Raises ValueError where there is no value or one is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"a mean over seeds needs finite numbers, not {list(values)}")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), deviation


def _differences(firsts: Sequence[Outcome], seconds: Sequence[Outcome]) -> Int[np.ndarray, "K n"]:
    """Correctness of first minus second: one row per seed, one column per prompt."""
    if len(firsts) != len(seconds) or not firsts:
        raise ValueError(
            f"two methods are compared seed by seed, but they have {len(firsts)} and "
            f"{len(seconds)} seeds"
        )
    for outcome in (*firsts, *seconds):
        check_same_prompts(firsts[0], outcome)
    correct = [
        np.stack([o.correct for o in outcomes]).astype(int) for outcomes in (firsts, seconds)
    ]
    return correct[0] - correct[1]


def pooled_difference(
    firsts: Sequence[Outcome], seconds: Sequence[Outcome], seed: int = 0, resamples: int = 10_000
) -> Estimate:
    """Mean overall accuracy of `firsts` minus that of `seconds`, for other seeds and prompts.

    Args:
        firsts: one method's outcomes, one per training seed.
        seconds: the other's, with the same seeds in the same order.
        seed: of the bootstrap.
        resamples: number of bootstrap samples.

    The bootstrap is crossed: a resample draws prompts and seeds, and every seed drawn is read at
    the same prompts (Owen, 2007). Of K > 1 seeds it draws K - 1, because K draws would understate
    the variance between few seeds by (K - 1)/K (Rao and Wu, 1988). The interval is the 2.5 and
    97.5 percentiles. Raises ValueError where prompts or numbers of seeds differ.
    """
    difference = _differences(firsts, seconds)
    seeds, n = difference.shape
    # Prompts that fare alike under all seeds are exchangeable: it suffices to draw how many of
    # each pattern a resample has.
    patterns, counts = np.unique(difference, axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    by_seed = rng.multinomial(n, counts / n, size=resamples) @ patterns.T / n  # [resamples, K]
    draws = max(1, seeds - 1)
    weights = rng.multinomial(draws, np.full(seeds, 1 / seeds), size=resamples) / draws
    low, high = np.quantile((by_seed * weights).sum(1), [0.025, 0.975])
    return Estimate(float(difference.mean()), float(low), float(high))


def pooled_p(
    firsts: Sequence[Outcome],
    seconds: Sequence[Outcome],
    seed: int = 0,
    resamples: int = 100_000,
) -> float:
    """Two-sided p-value that on every prompt each method is as likely to be ahead as the other.

    A prompt's mean difference over seeds keeps its size and has its sign flipped at random: a
    prompt is one observation, however many seeds answered it. Drawn `resamples` times, and the
    observed difference counts as one more (so p is never 0: Phipson and Smyth, 2010). The seeds
    are given, not sampled: only `pooled_difference` speaks of other seeds. With one seed it is
    the exact `mcnemar`. Raises ValueError where prompts or numbers of seeds differ.
    """
    difference = _differences(firsts, seconds)
    if len(difference) == 1:
        return mcnemar(firsts[0], seconds[0])
    total = difference.sum(0)  # K times the mean difference, in whole numbers
    sizes, counts = np.unique(np.abs(total), return_counts=True)
    # Of the c prompts with a difference of size s, Binomial(c, 1/2) keep a positive sign.
    positive = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, counts.size))
    flipped = (2 * positive - counts) @ sizes
    extreme = int((np.abs(flipped) >= abs(total.sum())).sum())
    return (1 + extreme) / (1 + resamples)
