import pickle
import random

import pytest

from offload_jax.tasks import make_task
from offload_jax.tasks.countdown.task import make_prompt


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    return make_task("countdown", directory, train=60, validation=20, test=40)


def test_prompts_are_read_at_random_and_have_unique_ids(task):
    splits = {split: task.prompts(split) for split in ("train", "validation", "test")}
    assert [len(prompts) for prompts in splits.values()] == [60, 20, 40]
    ids = [prompt.id for prompts in splits.values() for prompt in prompts]
    assert len(set(ids)) == 120 and all(0 <= i < 2**31 for i in ids)
    test = splits["test"]
    assert test[-1] == test[39] == test[38:][1] == test.__getitems__([3, 39])[1]
    assert test[7:7] == []
    with pytest.raises(IndexError):
        test[40]


def test_prompts_can_be_sent_to_another_process(task):
    prompts = task.prompts("validation")
    assert pickle.loads(pickle.dumps(prompts))[3] == prompts[3]


def test_expressions_that_come_to_the_same_are_the_same_answer():
    task, prompt = make_task("countdown", "unused"), make_prompt(5, [3, 7, 25], 46)
    forms = ["25 + 3 * 7", "3*7 + 25", "25 + 7 * 3", "(7*3)+25"]
    assert {task.canonical(form, prompt) for form in forms} == {"= 46"}
    # 46 is no expression of the numbers, and neither is one that needs another number.
    others = ["46", "23 * 2", "25 + 7", "25 / 7", "__import__('os')", ""]
    assert len({task.canonical(other, prompt) for other in others} | {"= 46"}) == 7


def test_the_devices_template_is_compact():
    prompt = make_prompt(5, [3, 7, 25], 46)
    task = make_task("countdown", "unused")
    assert task.device_text(prompt) == "<bos> 3 7 25 = 46 <think>"
    longest = make_prompt(5, [25, 25, 25, 25], 99)
    encoded = task.vocabulary.tokenizer.encode(task.device_text(longest))
    assert len(encoded.ids) <= 10 and "<unk>" not in encoded.tokens
    assert "3, 7 and 25" in prompt.question and "46" in prompt.question


def test_answers_are_verified_and_the_solver_knows_right_and_wrong_ones(task):
    for prompt in task.prompts("test"):
        assert task.verify(task.right_answer(prompt), prompt)
        assert not task.verify(task.wrong_answer(prompt, random.Random(0)), prompt)


def test_an_unknown_name_is_a_clear_error(task):
    with pytest.raises(ValueError, match="split 'dev' is not one of train, validation, test"):
        task.prompts("dev")
    with pytest.raises(ValueError, match=r"config\.task\.name = 'chess'"):
        make_task("chess", "unused")
