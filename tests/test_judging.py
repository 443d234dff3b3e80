import numpy as np
import pytest

from offload_jax.cloud.protocol import Answer
from offload_jax.judging import judge
from offload_jax.tasks import make_task
from offload_jax.tasks.countdown.task import make_prompt
from offload_jax.tasks.parsing import CALL_MARKER

_TASK = make_task("countdown", "unused")
_RIGHT = "no </think> <answer> 3 * 7 + 25 </answer>"
_WRONG = "no </think> <answer> 3 + 7 + 25 </answer>"
_CALL = f"no </think> {CALL_MARKER}"
_SLOPPY = "I need external assistence"


class _Cloud:
    """Answers as told per prompt id, and keeps what it was asked."""

    def __init__(self, responses):
        self.responses, self.batches = responses, []

    def answer(self, prompts):
        self.batches.append([prompt.id for prompt in prompts])
        return [Answer(self.responses[prompt.id]) for prompt in prompts]


def _prompts(*ids):
    return [make_prompt(i, (3, 7, 25), 46) for i in ids]


def test_each_response_is_right_or_a_call_or_neither():
    cloud = _Cloud({0: _RIGHT, 1: _RIGHT})
    judgement = judge(
        _TASK, cloud, _prompts(0, 1), [[_RIGHT, _CALL, _WRONG], [_SLOPPY, "", _RIGHT]]
    )
    np.testing.assert_array_equal(judgement.device_correct, [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(judgement.called, [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(judgement.formatted, [[1, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(judgement.cloud_correct, [1, 1])
    assert not (judgement.device_correct & judgement.called).any()
    for name in ("device_correct", "called", "formatted", "cloud_correct"):
        assert getattr(judgement, name).dtype == bool


def test_the_cloud_is_asked_once_per_prompt_with_a_call_in_one_batch():
    cloud = _Cloud({3: _RIGHT, 5: _WRONG, 9: _CALL})
    texts = [[_CALL, _CALL], [_RIGHT, _WRONG], [_WRONG, _CALL], [_CALL, _RIGHT]]
    judgement = judge(_TASK, cloud, _prompts(3, 4, 5, 9), texts)
    assert cloud.batches == [[3, 5, 9]]
    np.testing.assert_array_equal(judgement.cloud_correct, [1, 0, 0, 0])


def test_a_prompt_that_occurs_twice_is_one_query():
    cloud = _Cloud({3: _RIGHT})
    judgement = judge(_TASK, cloud, _prompts(3, 3, 3), [[_CALL], [_CALL], [_WRONG]])
    assert cloud.batches == [[3]]
    np.testing.assert_array_equal(judgement.cloud_correct, [1, 1, 0])


def test_without_a_call_the_cloud_is_not_asked():
    cloud = _Cloud({})
    judgement = judge(_TASK, cloud, _prompts(0), [[_RIGHT, _WRONG]])
    assert cloud.batches == [] and not judgement.cloud_correct.any()


def test_no_prompts_give_an_empty_judgement():
    judgement = judge(_TASK, _Cloud({}), [], [])
    assert judgement.called.shape == (0, 0) and judgement.cloud_correct.shape == (0,)


def test_ragged_groups_and_missing_responses_are_clear_errors():
    with pytest.raises(ValueError, match="2 prompts need as many groups of one size"):
        judge(_TASK, _Cloud({}), _prompts(0, 1), [[_RIGHT, _WRONG], [_RIGHT]])
    with pytest.raises(ValueError, match="2 prompts need as many groups of one size"):
        judge(_TASK, _Cloud({}), _prompts(0, 1), [[_RIGHT]])
    silent = type("Silent", (), {"answer": lambda self, prompts: []})()
    with pytest.raises(ValueError, match="the cloud gave 0 responses for 1 prompts"):
        judge(_TASK, silent, _prompts(0), [[_CALL]])


def test_the_clouds_tokens_are_counted_where_it_was_asked():
    cloud = _Cloud({0: "<answer> 3 * 7 + 25 </answer>", 1: "\ud800 a lone surrogate"})
    judged = judge(_TASK, cloud, _prompts(0, 1, 2), [[_CALL], [_CALL], [_WRONG]])
    assert judged.cloud_tokens.tolist() == [7, 4, 0]
    assert judged.cloud_correct.tolist() == [True, False, False]


def test_where_the_cloud_fails_a_call_is_not_right_and_the_failure_is_kept():
    cloud = _Cloud({0: _RIGHT, 1: None})
    cloud.answer = lambda prompts: [
        Answer(_RIGHT) if prompt.id == 0 else Answer(None, "timeout") for prompt in prompts
    ]
    judgement = judge(_TASK, cloud, _prompts(0, 1, 2), [[_CALL], [_CALL], [_RIGHT]])
    np.testing.assert_array_equal(judgement.cloud_correct, [1, 0, 0])
    np.testing.assert_array_equal(judgement.cloud_tokens > 0, [1, 0, 0])
    failures = [answer and answer.failure for answer in judgement.answers]
    assert failures == [None, "timeout", None] and judgement.answers[2] is None
    assert judgement.for_device().answers == ()


def test_tokens_are_the_clouds_own_where_it_tells_them():
    cloud = _Cloud({})
    cloud.answer = lambda prompts: [Answer(_RIGHT, tokens=1_234) for _ in prompts]
    assert judge(_TASK, cloud, _prompts(0), [[_CALL]]).cloud_tokens.tolist() == [1_234]
