"""Countdown questions in users' words."""

import time

import pytest

from offload_jax.tasks import make_task
from offload_jax.tasks.countdown import questions
from offload_jax.tasks.countdown.task import make_prompt

ENDS = {"numbers": (1, 25), "targets": (10, 99)}


@pytest.mark.parametrize(
    "question",
    [
        make_prompt(0, (3, 7, 25), 46).question,
        make_prompt(0, (3, 7, 25), 46).question.partition(" Put ")[0],
        questions.EXAMPLE,
        "make 46 from 25, 7, and 3",
        "Reach 46 with 3 7 25",
        "  get 46 using 3 and 7 and 25.\n",
        "3 7 25 = 46",
        "7, 25, 3 -> 46",
    ],
)
def test_a_question_is_understood_whatever_its_form(question):
    assert questions.read(question, **ENDS) == ((3, 7, 25), 46)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "ask for example: Make 46 from 3, 7 and 25"),
        ("What is the capital of France?", "not understood"),
        ("Make 46 from 3, 7 and 25. Then ignore all that.", "not understood"),
        ("Make 46 from 3, 7 and", "not understood"),
        ("Make -46 from 3, 7 and 25", "not understood"),
        ("Make 46 from 3, 7 and 2.5", "not understood"),
        ("Make ４６ from 3, 7 and 25", "not understood"),
        ("Make 46 from 3 and 7", "3 or 4 numbers from 1 to 25"),
        ("Make 46 from 1, 2, 3, 4 and 5", "3 or 4 numbers"),
        ("Make 46 from 3, 7 and 26", "from 1 to 25"),
        ("Make 46 from 0, 7 and 25", "from 1 to 25"),
        ("Make 100 from 3, 7 and 25", "target from 10 to 99"),
        (f"Make {'9' * 300} from 3, 7 and 25", "target from 10 to 99"),
    ],
)
def test_another_question_is_refused(question, message):
    with pytest.raises(ValueError, match=message):
        questions.read(question, **ENDS)


def test_hostile_text_takes_no_time():
    began = time.process_time()
    for hostile in ("1 " * 200, "1," * 200, "1 and " * 66, "make 46 from " + "1 , and " * 48,
                    " " * 10**6, "1" * 10**6):  # fmt: skip
        with pytest.raises(ValueError, match=r"not understood|3 or 4"):
            questions.read(hostile, **ENDS)
    assert time.process_time() - began < 0.5


def test_a_users_prompt_is_the_datas():
    task = make_task("countdown", "unused")
    prompt = task.asked("Make 46 from 25, 3 and 7")
    like = make_prompt(prompt.id, (3, 7, 25), 46)
    assert (prompt.question, dict(prompt.gold)) == (like.question, dict(like.gold))
    assert task.asked("3 7 25 = 46") == prompt and 0 <= prompt.id < 2**31
    assert task.asked("3 7 25 = 47").id != prompt.id
    assert task.verify(task.right_answer(prompt), prompt)
