"""The rivals of GAPG's estimator: GRPO (arXiv 2402.03300) and Dr.GRPO (arXiv 2503.20783).

Both ascend a clipped surrogate, token by token, with ratio = pi / pi_old and old = the sampler:

    J = mean over prompts of 1 / G * sum_i 1 / n_i * sum_t min(ratio A_i, clip(ratio) A_i)

GRPO divides by the response's own length, n_i = |y_i|, and A_i by the standard deviation of its
group. Dr.GRPO does neither: n_i is a constant, the longest response T, and A_i = r_i - mean r.
GRPO's KL term to a reference model is left out, as Dr.GRPO does.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offload_jax.learning.gapg import centred

EPSILON = 1e-4  # far below the standard deviation of rewards as they are used


def grpo_advantages(
    rewards: Float[Array, "P G"], lengths: Int[Array, "P G"]
) -> Float[Array, "P G"]:
    """A_i / (G |y_i|) with A_i = (r_i - mean r) / (std r + epsilon), the population's std."""
    deviation = rewards.std(axis=1, keepdims=True) + EPSILON
    return centred(rewards) / deviation / (rewards.shape[1] * lengths)


def dr_grpo_advantages(rewards: Float[Array, "P G"], T: int) -> Float[Array, "P G"]:
    """A_i / (G T) with A_i = r_i - mean r."""
    return centred(rewards) / (rewards.shape[1] * T)


def clipped_surrogate(
    logprobs: Float[Array, "P G T"],
    old: Float[Array, "P G T"],
    advantages: Float[Array, "P G"],
    clip: float,
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) per token (PPO, arXiv 1707.06347).

    Returns:
        The surrogate, and 1 where the clipped branch is taken, which has no gradient.
    """
    ratio = jnp.exp(logprobs - old)
    A = advantages[..., None]
    free, bounded = ratio * A, jnp.clip(ratio, 1 - clip, 1 + clip) * A
    return jnp.minimum(free, bounded), (bounded < free).astype(jnp.float32)
