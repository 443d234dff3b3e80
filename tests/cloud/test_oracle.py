import itertools
import math
import random

import pytest

from offload_jax.cloud import OracleConfig, make_cloud
from offload_jax.tasks import make_task
from offload_jax.tasks.countdown import solver
from offload_jax.tasks.countdown.task import make_prompt

_TASK = make_task("countdown", "unused")


def _oracle(accuracy=0.9, seed=0):
    return make_cloud(OracleConfig(accuracy=accuracy, seed=seed), _TASK, "unused", None)


def _prompts(count):
    rng = random.Random(0)
    drawn = ([rng.randint(1, 25) for _ in range(3)] for _ in range(count))
    targets = ((numbers, solver.random_combination(numbers, rng)[-1].result) for numbers in drawn)
    return [make_prompt(i, numbers, target) for i, (numbers, target) in enumerate(targets)]


def _right(cloud, prompts) -> list[bool]:
    answers = [_TASK.parse(answer.text).answer for answer in cloud.answer(prompts)]
    return [_TASK.verify(answer, prompt) for answer, prompt in zip(answers, prompts, strict=True)]


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.935, 1.0])
def test_the_share_of_right_answers_is_the_accuracy(accuracy):
    prompts = _prompts(1000)
    shares = [sum(_right(_oracle(accuracy, seed), prompts)) / 1000 for seed in range(4)]
    bound = 4 * math.sqrt(accuracy * (1 - accuracy) / 4000)
    assert abs(sum(shares) / 4 - accuracy) <= bound


def test_answers_do_not_depend_on_order_or_batching():
    prompts, cloud = _prompts(60), _oracle(0.5)
    together = cloud.answer(prompts)
    order = random.Random(1).sample(range(60), 60)
    assert [cloud.answer([prompts[i]])[0] for i in order] == [together[i] for i in order]
    assert _oracle(0.5).answer(prompts[::-1]) == together[::-1]


def test_another_seed_misses_other_prompts():
    prompts = _prompts(200)
    assert _right(_oracle(0.5, seed=0), prompts) != _right(_oracle(0.5, seed=1), prompts)


def test_neighbouring_prompts_are_missed_independently():
    right = _right(_oracle(0.5), _prompts(1000))
    pairs = [a == b for a, b in itertools.pairwise(right)]
    assert abs(sum(pairs) / len(pairs) - 0.5) < 4 * 0.5 / math.sqrt(len(pairs))


def test_a_wrong_answer_is_a_plausible_expression():
    prompts = _prompts(50)
    for response, prompt in zip(_oracle(0.0).answer(prompts), prompts, strict=True):
        answer = _TASK.parse(response.text).answer
        values = [
            v
            for v in range(1, 120)
            if _TASK.verify(answer, make_prompt(0, prompt.gold["numbers"], v))
        ]
        assert len(values) == 1 and values[0] != prompt.gold["target"]


def test_an_unsolvable_prompt_gets_a_wrong_answer():
    prompt = make_prompt(0, (1, 1, 1), 99)
    assert _right(_oracle(1.0), [prompt]) == [False]


def test_bad_settings_are_refused_in_words():
    with pytest.raises(ValueError, match=r"config\.cloud\.accuracy must be between 0 and 1"):
        _oracle(93.5)
    with pytest.raises(ValueError, match="needs a solver, riddles has none"):
        make_cloud(OracleConfig(), type("Task", (), {"name": "riddles"})(), "unused", None)
