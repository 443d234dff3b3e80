"""What is learnt from a batch, for every objective: by hand and against the published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.judging import Judgement
from offload_jax.learning.objective import ObjectiveConfig, learn
from offload_jax.learning.prompt_filter import FilterConfig
from offload_jax.learning.reward import RewardConfig

T = 10


def learnt(judged, lengths=None, *, name="gapg", call=0.3, enabled=True):
    P, G = judged.called.shape
    return learn(
        judged,
        jnp.full((P, G), 4) if lengths is None else jnp.asarray(lengths),
        jnp.arange(P),
        jax.random.key(0),
        objective=ObjectiveConfig(name),
        reward=RewardConfig(1.0, call),
        filter=FilterConfig(enabled=enabled),
        T=T,
    )


def judgement(device_correct, called, cloud_correct):
    device_correct, called = np.array(device_correct, bool), np.array(called, bool)
    return Judgement(device_correct, called, device_correct, np.array(cloud_correct, bool))


JUDGED = judgement(
    device_correct=[[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]],
    called=[[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]],
    cloud_correct=[1, 1, 0, 0],
)
LENGTHS = np.array([[2, 4, 8], [1, 5, 10], [3, 3, 3], [7, 8, 9]])


def test_gapg_is_the_mean_of_group_estimates_over_kept_prompts():
    result = learnt(JUDGED)
    np.testing.assert_allclose(result.rewards[0], [1.0, 0.3, 0.0])
    # D1 is prompts 0 and 2 (all correct: no gradient, yet in the denominator); floor(3/7 * 2) = 0
    # leaves no room in D2 for prompt 1.
    assert result.kept.d1.tolist() == [True, False, True, False]
    assert not result.kept.d2.any()
    np.testing.assert_allclose(
        result.weights[0], (np.array([1.0, 0.3, 0.0]) - 1.3 / 3) / 2 / 2, rtol=1e-6
    )
    assert not np.any(result.weights[1:])


def test_dr_grpo_divides_by_constants_only():
    weights = learnt(JUDGED, LENGTHS, name="dr_grpo", enabled=False).weights
    rewards = np.array([[1, 0.3, 0], [0.3, 0, 0], [1, 1, 1], [0, 0, 0]])
    advantages = rewards - rewards.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, advantages / (4 * 3 * T), atol=1e-8)


def test_grpo_divides_by_standard_deviation_and_own_length():
    weights = learnt(JUDGED, LENGTHS, name="grpo", enabled=False).weights
    rewards = np.array([[1, 0.3, 0], [0.3, 0, 0]])
    advantages = (rewards - rewards.mean(axis=1, keepdims=True)) / rewards.std(1, keepdims=True)
    np.testing.assert_allclose(weights[:2], advantages / (4 * 3 * LENGTHS[:2]), rtol=2e-3)
    assert not np.any(weights[2:])


def test_sft_averages_over_the_tokens_of_the_best_responses():
    judged = judgement(
        [[1, 0, 1], [0, 0, 0], [0, 0, 0]], [[0, 1, 0], [1, 1, 0], [0, 0, 0]], [1, 1, 0]
    )
    weights = learnt(judged, LENGTHS[:3], name="sft", enabled=False).weights
    np.testing.assert_allclose(weights[0], np.array([1, 0, 1]) / (2 + 8) / 3, rtol=1e-6)
    np.testing.assert_allclose(weights[1], np.array([1, 1, 0]) / (1 + 5) / 3, rtol=1e-6)
    assert not np.any(weights[2])


@pytest.mark.parametrize("name", ["gapg", "dr_grpo", "grpo"])
def test_without_a_reward_for_calls_a_call_is_a_wrong_answer(name):
    wrong = judgement(JUDGED.device_correct, np.zeros((4, 3)), [0, 0, 0, 0])
    ours = learnt(JUDGED, LENGTHS, name=name, call=0.0, enabled=False)
    np.testing.assert_array_equal(
        ours.weights, learnt(wrong, LENGTHS, name=name, call=0.0, enabled=False).weights
    )


@pytest.mark.parametrize("name", ["gapg", "dr_grpo", "grpo", "sft"])
def test_the_filter_serves_every_objective(name):
    kept = learnt(JUDGED, LENGTHS, name=name).weights
    assert np.any(kept[0]) and not np.any(kept[1])
    everything = learnt(JUDGED, LENGTHS, name=name, enabled=False).weights
    assert np.any(everything[1])
    np.testing.assert_allclose(kept[0], everything[0] * 4 / 2, rtol=1e-6)  # 2 of 4 prompts


@pytest.mark.parametrize("name", ["gapg", "dr_grpo", "grpo", "sft"])
def test_a_batch_without_a_kept_prompt_has_no_weights(name):
    judged = judgement(np.zeros((3, 4)), np.eye(3, 4), [1, 1, 1])
    weights = learnt(judged, name=name).weights
    assert np.all(np.isfinite(weights)) and not np.any(weights)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"updates": 0}, r"objective\.updates must be at least 1"),
        ({"updates": 2}, r"updates is 2; gapg is strictly on-policy"),
        ({"name": "grpo", "clip": 0.0}, r"objective\.clip must be positive"),
    ],
)
def test_impossible_objectives_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ObjectiveConfig(**settings)
