import numpy as np
import pytest

from offload_jax.judging import Judgement
from offload_jax.learning.reward import RewardConfig, hierarchical_reward

# One prompt with five responses: right; right and formatted; wrong and formatted; wrong; call.
DEVICE = np.array([[1, 1, 0, 0, 0]], bool)
CALLED = np.array([[0, 0, 0, 0, 1]], bool)
FORMATTED = np.array([[0, 1, 1, 0, 1]], bool)


@pytest.mark.parametrize(
    ("cloud", "format_reward", "expected"),
    [
        (True, 0.0, [1, 1, 0, 0, 0.25]),
        (False, 0.0, [1, 1, 0, 0, 0]),
        (True, 0.2, [1, 1.2, 0.2, 0, 0.25]),  # v1
        (False, 0.2, [1, 1.2, 0.2, 0, 0]),  # v1: a call earns no format term
    ],
)
def test_the_hierarchy_of_rewards(cloud, format_reward, expected):
    judged = Judgement(DEVICE, CALLED, FORMATTED, np.array([cloud]))
    rewards = hierarchical_reward(judged, RewardConfig(1.0, 0.25, format_reward))
    np.testing.assert_allclose(rewards, [expected], rtol=1e-6)


@pytest.mark.parametrize("alphas", [(0, 0, 0), (1, 0.2, 0.3), (1, 0.2, -0.1), (0.2, 1, 0)])
def test_alphas_out_of_order_are_refused(alphas):
    with pytest.raises(ValueError, match=r"config\.learning.*answer >= call >= format >= 0"):
        RewardConfig(*alphas)


def test_both_ends_of_the_papers_sweep_are_allowed():
    judged = Judgement(DEVICE, CALLED, FORMATTED, np.array([True]))
    assert hierarchical_reward(judged, RewardConfig(1.0, 0.0)).tolist() == [[1, 1, 0, 0, 0]]
    assert hierarchical_reward(judged, RewardConfig(1.0, 1.0)).tolist() == [[1, 1, 0, 0, 1]]
