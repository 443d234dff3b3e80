"""The clipped surrogate of PPO and GRPO: its value and its gradient, case by case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.learning.grpo import clipped_surrogate


def surrogate(ratio, advantage, clip=0.2):
    """Value, whether clipped, and d surrogate / d log pi of one token."""
    old = jnp.full((1, 1, 1), -1.5)
    logprobs = old + jnp.log(ratio)
    A = jnp.full((1, 1), advantage)
    value, clipped = clipped_surrogate(logprobs, old, A, clip)
    slope = jax.grad(lambda x: clipped_surrogate(x, old, A, clip)[0].sum())(logprobs)
    return value.item(), clipped.item(), slope.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "clipped", "slope"),
    [
        (1.0, 2.0, 2.0, 0, 2.0),  # on-policy: A grad log pi
        (1.1, 2.0, 2.2, 0, 2.2),
        (1.5, 2.0, 2.4, 1, 0.0),  # already likelier by more than the clip: no further
        (0.5, 2.0, 1.0, 0, 1.0),  # less likely: back up
        (0.5, -2.0, -1.6, 1, 0.0),  # already unlikelier by more than the clip
        (1.5, -2.0, -3.0, 0, -3.0),
    ],
)
def test_only_steps_further_away_are_clipped(ratio, advantage, value, clipped, slope):
    np.testing.assert_allclose(surrogate(ratio, advantage), (value, clipped, slope), rtol=1e-5)
