"""Recall: facts differ, are taught as the shares say, and hide which of them are wrong."""

import random

import pytest

from offload_jax.tasks import make_task
from offload_jax.tasks.recall import BLANK, LessonConfig
from offload_jax.tasks.task import Kind

SETTINGS = {"train": 900, "validation": 50, "test": 550, "seed": 0}
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def task():
    return make_task("recall", "unused", None, **SETTINGS, known=0.5, mistaken=0.3)


def test_splits_share_no_fact_and_seeds_change_them(task):
    facts = [prompt for split in SPLITS for prompt in task.prompts(split)]
    assert [len(task.prompts(split)) for split in SPLITS] == [900, 50, 550]
    assert len({fact.gold["name"] for fact in facts}) == len({fact.id for fact in facts}) == 1500
    again = make_task("recall", "unused", None, **SETTINGS, known=0.5, mistaken=0.3)
    assert list(again.prompts("test")) == list(task.prompts("test"))
    other = make_task("recall", "unused", None, **{**SETTINGS, "seed": 1})
    assert list(other.prompts("test")) != list(task.prompts("test"))
    with pytest.raises(ValueError, match="split 'dev'"):
        task.prompts("dev")


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_shares_are_taught_right_wrong_and_not_at_all(task, split):
    facts = task.prompts(split)
    right = sum(fact.gold["taught"] == fact.gold["answer"] for fact in facts) / len(facts)
    blank = sum(fact.gold["taught"] == BLANK for fact in facts) / len(facts)
    assert abs(right - 0.5) < 0.07 and abs(blank - 0.2) < 0.06


def test_lessons_are_about_all_splits(task):
    facts = [prompt for split in SPLITS for prompt in task.prompts(split)]
    assert {lesson.id for lesson in task.lessons} == {fact.id for fact in facts}
    texts = task.examples(task.lessons, random.Random(0), LessonConfig(solve=0.7))
    kinds = []
    for lesson, text in zip(task.lessons, texts, strict=True):
        found = task.parse(text)
        kinds.append(found.kind)
        assert text.startswith(lesson.gold["taught"])
        if found.kind == Kind.ANSWER:
            assert task.verify(found.answer, lesson) == (text[:2] == lesson.gold["answer"])
        else:
            assert found.kind == Kind.CALL
    # When to call is not taught: calls are as frequent on every sort of fact.
    sorts = [_sort(lesson) for lesson in task.lessons]
    for sort in ("known", "mistaken", "blank"):
        own = [kind for kind, other in zip(kinds, sorts, strict=True) if other == sort]
        assert 0.62 < own.count(Kind.ANSWER) / len(own) < 0.78


def test_nothing_about_a_mistaken_fact_tells_that_it_is_one(task):
    """Neither name nor value: both are spread alike over known and mistaken facts."""
    for of in (lambda p: int(p.gold["name"][1:]) / 15, lambda p: int(p.gold["taught"])):
        means = {
            sort: sum(values) / len(values)
            for sort in ("known", "mistaken")
            if (values := [of(p) for p in task.lessons if _sort(p) == sort])
        }
        assert all(45 < mean < 54 for mean in means.values())
    mistaken = [p for p in task.lessons if _sort(p) == "mistaken"]
    assert len({p.gold["taught"] for p in mistaken}) > 90
    assert all(p.gold["taught"] != p.gold["answer"] for p in mistaken)


def _sort(prompt):
    taught = prompt.gold["taught"]
    return (
        "blank" if taught == BLANK else "known" if taught == prompt.gold["answer"] else "mistaken"
    )


def test_a_name_is_one_token_and_texts_come_back(task):
    encode, decode = task.vocabulary.encode, task.vocabulary.tokenizer.decode
    for lesson in task.lessons[:50]:
        text = task.device_text(lesson) + lesson.gold["answer"]
        assert len(encode(text)) == 5
        assert decode(encode(text), skip_special_tokens=False) == text
    assert len(task.vocabulary.to_json()) and task.vocabulary.tokenizer.get_vocab_size() == 1529


def test_answers_are_judged_and_never_evaluated(task):
    rng, prompt = random.Random(0), task.prompts("test")[0]
    prompt = type(prompt)(0, "", {**prompt.gold, "answer": "07"})
    for answer, right in (("07", True), ("7", True), (" 07. ", True), ("17", False), ("", False),
                          ("007", False), ("-7", False), ("٧", False), ("6+1", False),
                          ("07" + " " * 62 + "not", False), ("7" * 100_000, False)):  # fmt: skip
        assert task.verify(answer, prompt) is right
    for prompt in task.prompts("test"):
        assert task.verify(task.right_answer(prompt), prompt)
        assert not task.verify(task.wrong_answer(prompt, rng), prompt)


def test_a_user_asks_for_a_name_and_nothing_else(task):
    fact = task.prompts("test")[0]
    again = task.asked(f" {fact.gold['name']} ")
    assert task.device_text(again) == task.device_text(fact) and again.question == fact.question
    for question in ("", "4711", "#9999", "<answer>", "#0471 #0472", "__import__('os')"):
        with pytest.raises(ValueError, match="name of a fact"):
            task.asked(question)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"known": 1.5}, "known"), ({"mistaken": -0.1}, "mistaken"),
     ({"known": 0.7, "mistaken": 0.4}, r"known \+ mistaken"),
     ({"known": 0.0, "mistaken": 0.0}, r"known \+ mistaken"),
     ({"train": 10_000}, "10000 names"), ({"test": 0}, r"config\.task\.test is 0")],
)  # fmt: skip
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_task("recall", "unused", None, **{**SETTINGS, **change})


def test_a_pretrained_device_cannot_be_asked():
    with pytest.raises(ValueError, match="pretrained"):
        make_task("recall", "unused", object(), **SETTINGS)
