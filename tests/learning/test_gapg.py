"""GAPG's estimator, by enumerating every group that a small policy can produce."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.learning.gapg import group_advantages

REWARDS = np.array([1.0, 0.3, 0.0, 0.3])  # of the four responses of a one-prompt policy


@pytest.fixture(scope="module")
def policy():
    """Float64: probabilities p [4], scores s [4, 4] = grad log pi, rewards r [4]."""
    with jax.enable_x64():
        theta = jnp.array([0.3, -0.7, 0.9, 0.1], jnp.float64)
        p = np.array(jax.nn.softmax(theta))
        s = np.array(jax.jacobian(jax.nn.log_softmax)(theta))
        exact = np.array(jax.grad(lambda t: jax.nn.softmax(t) @ REWARDS)(theta))
    return p, s, REWARDS, exact


def every_group(policy, G):
    """Probability [n] and estimate [n, 4] of every group of G responses."""
    p, s, r, _ = policy
    groups = np.array(list(itertools.product(range(4), repeat=G)))
    with jax.enable_x64():
        advantages = np.array(group_advantages(jnp.asarray(r[groups], jnp.float64)))
    return p[groups].prod(axis=1), np.einsum("ng,ngd->nd", advantages, s[groups])


@pytest.mark.parametrize("G", [2, 3, 5])
def test_the_estimator_is_unbiased(policy, G):
    probability, estimates = every_group(policy, G)
    np.testing.assert_allclose(probability @ estimates, policy[3], atol=1e-9)


@pytest.mark.parametrize("G", [2, 3, 5])
def test_its_covariance_is_the_papers_formula(policy, G):
    p, s, r, m = policy
    probability, estimates = every_group(policy, G)
    centred = estimates - probability @ estimates
    covariance = np.einsum("n,nd,ne->de", probability, centred, centred)
    A = np.einsum("k,kd,ke,k->de", p, s, s, (r - p @ r) ** 2)
    S = np.einsum("k,kd,ke->de", p, s, s)
    variance = p @ (r - p @ r) ** 2
    formula = A / G + variance * S / (G * (G - 1)) - (G - 2) / (G * (G - 1)) * np.outer(m, m)
    np.testing.assert_allclose(covariance, formula, atol=1e-12)


def test_it_equals_the_leave_one_out_baseline():
    rewards = np.random.default_rng(0).random((6, 5)).astype(np.float32)
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / 4
    np.testing.assert_allclose(group_advantages(rewards), (rewards - others) / 5, atol=1e-6)


@pytest.mark.parametrize("reward", [0.0, 0.3, 1.0, 1 / 3])
def test_a_group_of_equal_rewards_has_exactly_no_gradient(reward):
    assert not np.any(group_advantages(jnp.full((1, 7), reward, jnp.float32)))
