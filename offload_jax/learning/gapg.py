"""GAPG, group-adaptive policy gradient (arXiv 2509.24050): what is learnt from a judged batch.

    theta <- theta + eta / |D1 u D2| * sum over x in D1 u D2 of g(x)
    g(x)   = 1 / (G - 1) * sum over i of grad log pi(y_i | x) * (r_i - mean r)

log pi is the sum over the device's own tokens: no length normalisation, no division by the
standard deviation, no clipping, no importance ratio, no KL term; one update per batch.
"""

import dataclasses

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from offload_jax.judging import Judgement
from offload_jax.learning.prompt_filter import FilterConfig, Kept, filter_prompts
from offload_jax.learning.reward import RewardConfig, hierarchical_reward


@dataclasses.dataclass(frozen=True)
class GapgConfig:
    """The objective's settings."""

    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    filter: FilterConfig = dataclasses.field(default_factory=FilterConfig)


@struct.dataclass
class Gapg:
    """One judged batch in GAPG's eyes."""

    rewards: Float[Array, "P G"]
    kept: Kept
    weights: Float[Array, "P G"]  # the update ascends sum(weights * log pi(response))


def gapg(
    judgement: Judgement, ids: Int[Array, " P"], key: Key[Array, ""], config: GapgConfig
) -> Gapg:
    """Rewards, filter and estimator, in the paper's order."""
    rewards = hierarchical_reward(judgement, config.reward)
    kept = filter_prompts(judgement, ids, key, config.filter)
    mean_over_prompts = kept.prompts / jnp.maximum(kept.prompts.sum(), 1)
    return Gapg(rewards, kept, mean_over_prompts[:, None] * group_advantages(rewards))


def group_advantages(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """(r_i - mean r) / (G - 1): the coefficients of grad log pi(y_i | x) in the estimator, G >= 2.

    Equal to the leave-one-out baseline's (r_i - mean of the others) / G, hence unbiased.
    """
    G = rewards.shape[1]
    advantages = (rewards - rewards.mean(axis=1, keepdims=True)) / (G - 1)
    # Exactly zero where all rewards are equal, so that the update can leave the group out.
    equal = rewards.max(axis=1, keepdims=True) == rewards.min(axis=1, keepdims=True)
    return jnp.where(equal, 0.0, advantages)
