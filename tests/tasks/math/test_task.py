"""Mathematics as a task: splits, prompts, judging, examples; Countdown in a chat template."""

import random

import pytest

from offload_jax.cloud.oracle import Oracle
from offload_jax.cloud.protocol import Answer
from offload_jax.judging import judge
from offload_jax.tasks import make_task
from offload_jax.tasks.math.config import MathConfig, SolutionConfig
from offload_jax.tasks.parsing import CALL_MARKER
from offload_jax.tasks.task import Kind
from tests.pretrained.folders import vocabulary
from tests.tasks.math.files import problem, write_all, write_parquet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("math")
    write_all(folder / "files")
    return folder


def make(folder, **settings):
    settings = {"files": str(folder / "files"), "validation": 6, "workers": 1, **settings}
    return make_task("math", folder / "data", vocabulary(), **settings)


@pytest.fixture(scope="module")
def task(folder):
    return make(folder, test="math500")


def test_validation_is_held_out_of_train_by_the_seed(folder, task):
    splits = {split: task.prompts(split) for split in ("train", "validation", "test")}
    assert {split: len(prompts) for split, prompts in splits.items()} == {
        "train": 18, "validation": 6, "test": 8,
    }  # fmt: skip
    ids = [prompt.id for prompts in splits.values() for prompt in prompts]
    assert sorted(ids) == [*range(24), *range(1_000_000, 1_000_008)]
    assert make(folder, test="math500").prompts("validation") == splits["validation"]
    assert make(folder, test="math500", seed=1).prompts("validation") != splits["validation"]
    with pytest.raises(ValueError, match="split 'dev'"):
        task.prompts("dev")


def test_training_problems_that_repeat_are_left_out_and_told(tmp_path, capsys):
    write_all(tmp_path / "files")
    rows = [problem(i) for i in (0, 1, 2, 3, 0, 1000)]
    rows = [{"problem": q.replace("What", "what"), "solution": s} for q, _, s in rows]
    write_parquet(tmp_path / "files/math_lighteval/data/train-00000-of-00001.parquet", rows)
    task = make(tmp_path, validation=1, test="amc23")
    assert len(task.prompts("train")) == 3 and len(task.prompts("validation")) == 1
    assert "1 problems repeat another, 1 a test problem of amc23" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"config\.task\.validation is 4; math_lighteval has 4"):
        make(tmp_path, validation=4, test="amc23").prompts("train")


def test_the_device_is_asked_in_its_template_and_the_cloud_in_plain_words(folder, task):
    prompt = task.prompts("test")[0]
    text = task.device_text(prompt)
    asked = prompt.gold["problem"]
    assert text.startswith("<s><system>") and text.endswith("<assistant>")
    assert f"<user>{asked}</s>" in text and CALL_MARKER in text and "\\boxed{}" in text
    assert "6 steps" in text and "Step 1" in text
    assert prompt.question.startswith(asked) and prompt.question.endswith("\\boxed{}.")
    assert "unknown" not in prompt.question
    assert CALL_MARKER not in make(folder, help=False).device_text(prompt)


def test_responses_are_judged_and_all_answers_at_once(task, monkeypatch):
    prompts = task.prompts("test")[:2]
    right = prompts[0].gold["answer"]
    texts = [
        [f"so \\boxed{{{right}}}", f"so ${right}$ it is", f"so {right}.", CALL_MARKER],
        [f"so \\boxed{{{right}}}", f"\\boxed{{{right}}} {CALL_MARKER}", "", "\\boxed{}"],
    ]
    asked = []
    verify_all = task.verify_all
    monkeypatch.setattr(task, "verify_all", lambda pairs: asked.append(pairs) or verify_all(pairs))
    cloud = type("Cloud", (), {})()
    cloud.answer = lambda prompts: [
        Answer(f"It is \\boxed{{{p.gold['answer']}}}.") for p in prompts
    ]
    judgement = judge(task, cloud, prompts, texts)
    assert judgement.device_correct.tolist() == [[True] * 3 + [False], [False] * 4]
    assert judgement.called.tolist() == [[False] * 3 + [True], [False, True, False, False]]
    assert judgement.cloud_correct.tolist() == [True, True]
    assert [len(pairs) for pairs in asked] == [5, 2]


def test_the_oracle_answers_in_a_box(task):
    prompts = task.prompts("test")
    for accuracy, right in ((1.0, True), (0.0, False)):
        oracle = Oracle(task.right_answer, task.wrong_answer, accuracy, 0, task.answer_form)
        for prompt, answer in zip(prompts, oracle.answer(prompts), strict=True):
            found = task.parse(answer.text)
            assert found.formatted and task.verify(found.answer, prompt) is right


def test_an_example_is_the_solution_or_half_of_it_and_a_call(task):
    prompts = task.prompts("train")
    texts = task.examples(prompts * 20, random.Random(0), SolutionConfig(solve=0.6))
    kinds = [task.parse(text).kind for text in texts]
    assert 0.5 < kinds.count(Kind.ANSWER) / len(kinds) < 0.7
    assert kinds.count(Kind.ANSWER) + kinds.count(Kind.CALL) == len(kinds)
    for prompt, text in zip(prompts * 20, texts, strict=True):
        found = task.parse(text)
        assert found.formatted and (found.answer is None or task.verify(found.answer, prompt))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": "math500"}, r"config\.task\.train is 'math500'.* math_lighteval, gsm8k"),
        ({"test": "math-500"}, r"config\.task\.test is 'math-500'.* math500, amc23"),
        ({"validation": 0}, r"config\.task\.validation"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        MathConfig(files="x", **change)


def test_missing_files_and_packages_are_told_before_anything_is_built(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet is missing"):
        make(folder, files=str(folder / "nowhere"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package math-verify: pip install"):
        make(folder, seconds=2.5)


def test_countdown_is_asked_in_the_template_of_a_pretrained_device(tmp_path):
    sizes = {"train": 5, "validation": 2, "test": 2}
    task = make_task("countdown", tmp_path, vocabulary(), **sizes)
    prompt = task.prompts("test")[0]
    text = task.device_text(prompt)
    assert text.endswith("<assistant>Let me work this out step by step.\n<think>")
    assert f"<user>{prompt.question}</s>" in text and CALL_MARKER in text
    assert task.vocabulary.stops == (2,)
