"""Adaptive prompt filtering: which prompts of a batch GAPG learns from."""

import dataclasses
import math
from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, Key

from offload_jax.judging import Judgement
from offload_jax.settings import require


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """The budget and the reading of the paper."""

    enabled: bool = True  # False: every prompt is kept (the paper's ablation)
    rho: float = 3 / 7  # cloud-solved per device-solved prompt: a call ratio of rho / (1 + rho)
    solved: Literal["any_correct", "mixed"] = "any_correct"  # what puts a prompt into D1

    def __post_init__(self):
        require(
            0 <= self.rho < math.inf,
            f"config.learning.filter.rho is {self.rho}; it must be at least 0 and finite.",
        )


@struct.dataclass
class Kept:
    """D1 and D2 as masks; they are disjoint."""

    d1: Bool[Array, " P"]  # solved on the device
    d2: Bool[Array, " P"]  # left to the cloud

    @property
    def prompts(self) -> Bool[Array, " P"]:
        """D1 united with D2."""
        return self.d1 | self.d2


def filter_prompts(
    judgement: Judgement, ids: Int[Array, " P"], key: Key[Array, ""], config: FilterConfig
) -> Kept:
    """Keeps D1 and at most floor(rho |D1|) of the prompts that only the cloud solves, D2.

    D1 has two readings in the paper. `any_correct` (its text, the default): at least one response
    of the group is a correct answer of the device. `mixed` (its pseudo-code): the group has both
    positive responses (correct answers or correct calls) and others. They differ on groups that
    are all positive, which have or have not a share in the denominator, and on groups whose only
    positives are calls.

    A candidate for D2 is a prompt outside D1 without a correct device answer and with a correct
    cloud answer; the cloud is known to be correct only if some response called. The paper leaves
    order and rounding open: candidates are drawn uniformly at random, by a key folded with the
    prompt's id, and the cap is rounded down.
    """
    P = ids.shape[0]
    any_correct = judgement.device_correct.any(axis=1)
    if not config.enabled:
        return Kept(d1=any_correct, d2=~any_correct)
    if config.solved == "any_correct":
        d1 = any_correct
    else:
        positive = judgement.device_correct | (judgement.called & judgement.cloud_correct[:, None])
        d1 = positive.any(axis=1) & ~positive.all(axis=1)
    candidates = ~d1 & ~any_correct & judgement.called.any(axis=1) & judgement.cloud_correct
    lots = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(ids)
    order = jnp.argsort(jnp.where(candidates, lots, jnp.inf))
    rank = jnp.zeros(P, jnp.int32).at[order].set(jnp.arange(P))
    cap = jnp.asarray(d2_caps(config.rho, P))[d1.sum()]
    return Kept(d1=d1, d2=candidates & (rank < cap))


def d2_caps(rho: float, P: int) -> list[int]:
    """floor(rho n), at most P, for n = 0 .. P; exact where rho is a ratio such as 3/7."""
    ratio = Fraction(rho).limit_denominator(10_000)
    return [min(P, math.floor(ratio * n)) for n in range(P + 1)]
