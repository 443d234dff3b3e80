"""What is learnt from a judged batch: reward, prompt filter and estimator, each by its config.

Every row of the paper is a choice of the three:

| row | objective | reward.call | filter.enabled |
|---|---|---|---|
| GAPG | gapg | alpha_c | True |
| GAPG without filter | gapg | alpha_c | False |
| Collaboration-Aware Tuning | dr_grpo (v1: grpo) | alpha_c | False |
| Task-Tuning Only (also under Naive Offloading and Router) | grpo | 0 | False |

Not in the paper's tables: sft, supervised fine-tuning on the best of a group's own responses.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from offload_jax.judging import Judgement
from offload_jax.learning.gapg import group_advantages
from offload_jax.learning.grpo import dr_grpo_advantages, grpo_advantages
from offload_jax.learning.prompt_filter import FilterConfig, Kept, filter_prompts
from offload_jax.learning.reward import RewardConfig, hierarchical_reward
from offload_jax.learning.sft import best_of_group
from offload_jax.settings import require


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The estimator and how often a batch is used."""

    name: Literal["gapg", "dr_grpo", "grpo", "sft"] = "gapg"
    updates: int = 1  # optimiser steps per batch; above 1 for GRPO and Dr.GRPO only
    clip: float = 0.2  # epsilon of GRPO's and Dr.GRPO's surrogate

    def __post_init__(self):
        path = "config.learning.objective"
        require(self.updates >= 1, f"{path}.updates must be at least 1.")
        require(self.clip > 0, f"{path}.clip must be positive.")
        require(
            self.updates == 1 or self.clipped,
            f"{path}.updates is {self.updates}; {self.name} is strictly on-policy and takes 1.",
        )

    @property
    def clipped(self) -> bool:
        """Whether the update ascends the clipped surrogate."""
        return self.name in ("grpo", "dr_grpo")


@struct.dataclass
class Learnt:
    """One judged batch in the objective's eyes."""

    rewards: Float[Array, "P G"]
    kept: Kept
    weights: Float[Array, "P G"]  # the update ascends sum(weights * log pi(response))


def learn(
    judgement: Judgement,
    lengths: Int[Array, "P G"],
    ids: Int[Array, " P"],
    key: Key[Array, ""],
    *,
    objective: ObjectiveConfig,
    reward: RewardConfig,
    filter: FilterConfig,
    T: int,
) -> Learnt:
    """Rewards, filter and estimator, in the paper's order.

    Args:
        judgement: of P prompts with G responses each.
        lengths: tokens of the responses.
        ids: of the prompts.
        key: the filter's random stream.
        objective: which estimator.
        reward: what responses are worth.
        filter: which prompts are kept; the estimator is a mean over those.
        T: the longest response that the sampler allows.
    """
    rewards = hierarchical_reward(judgement, reward)
    kept = filter_prompts(judgement, ids, key, filter)
    advantages = {
        "gapg": lambda: group_advantages(rewards),
        "dr_grpo": lambda: dr_grpo_advantages(rewards, T),
        "grpo": lambda: grpo_advantages(rewards, lengths),
        "sft": lambda: best_of_group(rewards, lengths),
    }[objective.name]()
    mean_over_prompts = kept.prompts / jnp.maximum(kept.prompts.sum(), 1)
    return Learnt(rewards, kept, mean_over_prompts[:, None] * advantages)
