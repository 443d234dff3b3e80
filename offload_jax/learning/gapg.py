"""GAPG, group-adaptive policy gradient (arXiv 2509.24050): the estimator.

    theta <- theta + eta / |D1 u D2| * sum over x in D1 u D2 of g(x)
    g(x)   = 1 / (G - 1) * sum over i of grad log pi(y_i | x) * (r_i - mean r)

log pi is the sum over the device's own tokens: no length normalisation, no division by the
standard deviation, no clipping, no importance ratio, no KL term; one update per batch. D1 and D2
are in `prompt_filter`, r in `reward`; `objective` puts the three together.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def group_advantages(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """(r_i - mean r) / (G - 1): the coefficients of grad log pi(y_i | x) in the estimator, G >= 2.

    Equal to the leave-one-out baseline's (r_i - mean of the others) / G, hence unbiased.
    """
    return centred(rewards) / (rewards.shape[1] - 1)


def centred(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """r_i - mean r; exactly zero where all are equal, so that the update can skip the group."""
    equal = rewards.max(axis=1, keepdims=True) == rewards.min(axis=1, keepdims=True)
    return jnp.where(equal, 0.0, rewards - rewards.mean(axis=1, keepdims=True))
