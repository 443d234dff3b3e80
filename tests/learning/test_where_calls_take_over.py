"""From which reward on calls take over, by the objective itself (docs/regimes.md).

A device that cannot tell its prompts apart calls on each with the same probability, Q. The expected
gradient of that call's logit then says whether calls become more frequent.
"""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from offload_jax.judging import Judgement
from offload_jax.learning.objective import ObjectiveConfig, learn
from offload_jax.learning.prompt_filter import FilterConfig
from offload_jax.learning.reward import RewardConfig

P, G, Q, CLOUD, RHO = 32, 8, 0.2, 0.935, 3 / 7
BATCHES = 2000


def agreeing(key):
    """Attempts at one prompt agree: all solve it (a third of the prompts), or none does."""
    return (jax.random.uniform(key, (P,)) < 0.35).astype(float)


def differing(key):
    """Attempts at one prompt differ: they are right with a probability of Beta(0.3, 0.7)."""
    return jax.random.beta(key, 0.3, 0.7, (P,))


def batch(key, accuracies, call, enabled):
    """One batch: d/d logit of its objective, and right answers and all answers to D1's prompts."""
    accuracy, calls, rights, cloud, draw = jax.random.split(key, 5)
    called = jax.random.bernoulli(calls, Q, (P, G))
    right = jax.random.uniform(rights, (P, G)) < accuracies(accuracy)[:, None]
    right &= ~called
    cloud = jax.random.bernoulli(cloud, CLOUD, (P,)) & called.any(axis=1)
    learnt = learn(
        Judgement(right, called, right, cloud),
        jnp.ones((P, G), int),
        jnp.arange(P),
        draw,
        objective=ObjectiveConfig("gapg"),
        reward=RewardConfig(1.0, call),
        filter=FilterConfig(enabled, RHO),
        T=1,
    )
    solved = learnt.kept.d1[:, None]
    return (learnt.weights * (called - Q)).sum(), (right & solved).sum(), (~called & solved).sum()


def pull(accuracies, call, enabled):
    """Which way calls go: the expected gradient in standard errors; s, D1's share right."""
    one = partial(batch, accuracies=accuracies, call=call, enabled=enabled)
    gradients, right, answers = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), BATCHES))
    error = gradients.std() / BATCHES**0.5
    return gradients.mean() / error, right.sum() / answers.sum()


@pytest.mark.parametrize(("accuracies", "accuracy"), [(agreeing, 0.35), (differing, 0.3)])
def test_without_the_filter_calls_take_over_above_accuracy_over_the_clouds(accuracies, accuracy):
    threshold = accuracy / CLOUD
    assert pull(accuracies, threshold - 0.06, enabled=False)[0] < -4
    assert pull(accuracies, threshold + 0.06, enabled=False)[0] > 4


@pytest.mark.parametrize(("accuracies", "share"), [(agreeing, 1.0), (differing, 0.53)])
def test_with_it_above_the_share_of_right_answers_to_solved_prompts_over_a_plus_rho(
    accuracies, share
):
    threshold = share / (CLOUD + RHO)
    low, s = pull(accuracies, threshold - 0.06, enabled=True)
    high, _ = pull(accuracies, threshold + 0.06, enabled=True)
    assert low < -4 < 4 < high
    assert s == pytest.approx(share, abs=0.01)
