"""Arithmetic: problems are right, different, reproducible; answers are judged, examples parse."""

import random

import pytest

from offload_jax.tasks import make_task
from offload_jax.tasks.arithmetic.problems import ProblemConfig, problems, read_chain, write_chain
from offload_jax.tasks.arithmetic.task import SYSTEM, ExampleConfig
from offload_jax.tasks.task import Kind
from tests.pretrained.folders import vocabulary

SETTINGS = {"train": 300, "validation": 20, "test": 30, "seed": 0}


@pytest.fixture(scope="module")
def task():
    return make_task("arithmetic", "unused", vocabulary(), **SETTINGS)


@pytest.fixture(scope="module")
def small():
    """For a device LLM that is trained from nothing, in the task's own vocabulary."""
    return make_task("arithmetic", "unused", None, **SETTINGS, stories=0.0, products=0.4)


def test_the_answer_is_the_value_of_the_chain_as_it_is_asked():
    plain = problems(
        ProblemConfig(steps=(1, 2, 3, 4, 5, 6), products=0.4, stories=0.0), 500, seed=3
    )
    for problem in plain:
        chain = next(
            problem.question.removeprefix(start).rstrip("?.")
            for start in ("What is ", "Compute ", "Find the value of ")
            if problem.question.startswith(start)
        )
        assert set(chain) <= set("0123456789+-* ()")
        assert eval(chain) == problem.values()[-1]  # our own text, by Python's precedence
        assert all(0 <= value <= 9_999 for value in problem.values())
    assert {len(problem.steps) for problem in plain} == set(range(1, 7))


def test_a_number_of_steps_that_stands_twice_is_twice_as_frequent():
    made = problems(ProblemConfig(steps=(1, 1, 5), largest=400, products=0.0), 900, seed=1)
    assert 540 < sum(len(problem.steps) == 1 for problem in made) < 660


def test_a_story_tells_every_number_in_order():
    told = problems(ProblemConfig(products=0.0, stories=1.0), 100, seed=1)
    for problem in told:
        numbers = [int(word.rstrip(".")) for word in problem.question.split() if word[0].isdigit()]
        assert numbers == [problem.first, *(n for _, n in problem.steps)]


def test_splits_share_no_problem_and_seeds_change_them(task):
    splits = [task.prompts(split) for split in ("train", "validation", "test")]
    assert [len(split) for split in splits] == [300, 20, 30]
    chains = [(p.gold["first"], str(p.gold["steps"])) for split in splits for p in split]
    assert len(set(chains)) == 350 and len({p.id for split in splits for p in split}) == 350
    again = make_task("arithmetic", "unused", vocabulary(), **SETTINGS)
    assert list(again.prompts("test")) == list(task.prompts("test"))
    other = make_task("arithmetic", "unused", vocabulary(), **{**SETTINGS, "seed": 1})
    assert list(other.prompts("test")) != list(task.prompts("test"))
    with pytest.raises(ValueError, match="split 'dev'"):
        task.prompts("dev")


@pytest.mark.parametrize(
    ("answer", "right"),
    [("42", True), (" 42 ", True), ("42.", True), ("0042", True), ("4,2", True), ("41", False),
     ("", False), ("42.0", False), ("forty-two", False), ("4 2", False), ("٤٢", False),
     ("41+1", False), ("__import__('os')", False), ("9" * 100_000, False),
     ("42" + " " * 62 + "0", False), ("-42", False)],
)  # fmt: skip
def test_an_answer_is_an_integer_and_never_evaluated(task, answer, right):
    prompt = task.prompts("test")[0]
    prompt = type(prompt)(0, "", {**prompt.gold, "answer": 42})
    assert task.verify(answer, prompt) is right


def test_the_same_integer_is_the_same_answer(task):
    prompt = task.prompts("test")[0]
    assert {task.canonical(answer, prompt) for answer in ("4,200", " 4200.", "4200")} == {"4200"}


def test_the_clouds_answers_are_judged_as_meant(task):
    rng = random.Random(0)
    for prompt in task.prompts("test"):
        assert task.verify(task.right_answer(prompt), prompt)
        assert not task.verify(task.wrong_answer(prompt, rng), prompt)


def test_an_example_is_worked_and_ends_with_answer_or_call(task):
    rng, prompts = random.Random(0), task.prompts("train")
    texts = task.examples(prompts, rng, ExampleConfig(solve=0.6))
    for prompt, text in zip(prompts, texts, strict=True):
        found = task.parse(text)
        *lines, _ = text.splitlines()
        for line, (op, n) in zip(lines, prompt.gold["steps"], strict=False):
            left, result = line.split(" = ")
            assert left.endswith(f" {op} {n}") and eval(left) == int(result)
        if found.kind == Kind.ANSWER:
            assert task.verify(found.answer, prompt)
        else:
            assert found.kind == Kind.CALL
        assert len(lines) == len(prompt.gold["steps"])
    kinds = [task.parse(text).kind for text in texts]
    assert 0.5 < sum(kind == Kind.ANSWER for kind in kinds) / len(kinds) < 0.7


def test_the_device_is_asked_in_its_own_template_and_the_cloud_in_plain_words(task):
    prompt = task.prompts("test")[0]
    text = task.device_text(prompt)
    assert text.startswith(f"<s><system>{SYSTEM}</s>") and text.endswith("<assistant>")
    asked = prompt.gold["question"]
    assert f"<user>{asked}</s>" in text and prompt.question.startswith(asked)
    assert "<answer>" in prompt.question and "unknown" not in prompt.question


def test_a_small_device_is_asked_the_bare_chain_in_tokens_of_one_digit(small):
    encode, decode = small.vocabulary.encode, small.vocabulary.tokenizer.decode
    prompts = small.prompts("train")
    for prompt, text in zip(
        prompts, small.examples(prompts, random.Random(0), ExampleConfig(solve=0.5)), strict=True
    ):
        asked = small.device_text(prompt)
        assert asked.startswith("<bos>") and asked.endswith("=") and " " not in asked
        assert eval(asked[5:-1]) == prompt.gold["answer"]
        assert decode(encode(asked + text), skip_special_tokens=False) == asked + text
        found = small.parse(text)
        assert found.kind in (Kind.ANSWER, Kind.CALL) and text[: found.at].count("=") >= 1
        assert found.kind == Kind.CALL or small.verify(found.answer, prompt)
        assert small.vocabulary.tokenizer.token_to_id("<unk>") not in encode(asked + text)
    assert len(encode("1234")) == 4 and len(encode(small.openings[0])) == 1


@pytest.mark.parametrize("text", ["what? is\nit", "<unknown>", "é²\0", " I need", "<answer"])
def test_whatever_is_encoded_keeps_to_the_small_vocabulary(small, text):
    assert all(0 <= token < 32 for token in small.vocabulary.encode(text))


def test_a_user_asks_the_small_device_a_chain_from_left_to_right_and_nothing_else(small):
    for prompt in small.prompts("test"):
        again = small.asked(prompt.gold["question"])
        assert small.device_text(again) == small.device_text(prompt)
        assert small.verify(str(prompt.gold["answer"]), again)
        chain = write_chain(prompt.gold["first"], prompt.gold["steps"])
        assert write_chain(*read_chain(chain.replace(" ", "") + "=")) == chain
    for question in ("", "1 + 2 * 3", "7", "(1 + 2", "2 ** 9", "1 + 2 =, 5", "What is love?",
                     "1 + " * 200 + "1", "__import__('os')", "1 + ٤"):  # fmt: skip
        with pytest.raises(ValueError, match="not understood as a chain"):
            small.asked(question)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": (0, 3)}, r"config\.task\.steps"), ({"largest": 1}, r"config\.task\.largest"),
     ({"products": 1.5}, r"config\.task\.products"), ({"factor": 50}, r"config\.task\.factor")],
)  # fmt: skip
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ProblemConfig(**change)


def test_too_few_different_problems_are_told():
    with pytest.raises(ValueError, match="asks for 5000 different problems"):
        problems(ProblemConfig(steps=(1,), largest=5), 5000, seed=0)
