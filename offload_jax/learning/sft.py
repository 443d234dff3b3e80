"""Supervised fine-tuning on the policy's own best responses (RAFT, arXiv 2304.06767)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def best_of_group(rewards: Float[Array, "P G"], lengths: Int[Array, "P G"]) -> Float[Array, "P G"]:
    """1 / tokens for the responses with the group's highest reward, 0 for all others.

    `tokens` is the sum over the group's best responses, so that a group's weighted log-probability
    is the mean over their tokens. A group without any reward teaches nothing.
    """
    highest = rewards.max(axis=1, keepdims=True)
    best = (rewards == highest) & (highest > 0)
    tokens = jnp.sum(best * lengths, axis=1, keepdims=True)
    return best / jnp.maximum(tokens, 1)
