"""Every form of every config of the paper's experiments is a valid experiment or study."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from offload_jax.tasks import make_task
from offload_jax.training import experiment, start, study
from offload_jax.training.rehearsal import write_rehearsal

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = ("countdown_qwen25_3b", "math_llama32_1b", "math_qwen25_15b", "math_llama32_3b")
METHODS = {  # objective, updates, filter, and whether a correct call is rewarded
    "gapg": ("gapg", 1, True, True),
    "gapg_without_filter": ("gapg", 1, False, True),
    "collaboration_aware": ("dr_grpo", 2, False, True),
    "collaboration_aware_grpo": ("grpo", 1, False, True),
    "task_tuned": ("grpo", 1, False, False),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config in a form, with a tiny checkpoint in place of the real one."""
    folder = tmp_path_factory.mktemp("rehearsal") / "made"
    write_rehearsal(folder)

    def made(name, form):
        values = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](form)
        values.get("base", values).device = ConfigDict({"pretrained": str(folder / "qwen2")})
        return values

    return made


@pytest.mark.parametrize("name", PAPER)
def test_a_methods_form_is_that_method(config, name):
    for form, expected in METHODS.items():
        learning = experiment.from_config(config(name, form)).learning
        objective, kept = learning.objective, learning.filter
        said = (objective.name, objective.updates, kept.enabled, learning.reward.call > 0)
        assert said == expected, form


@pytest.mark.parametrize("name", PAPER)
def test_a_table_has_every_row_and_three_seeds(config, name):
    made = study.from_config(config(name, "table"))
    assert set(made.methods) == set(METHODS) and len(made.seeds) == 3
    assert study.from_config(config(name, "table_smoke")).seeds == (0,)


@pytest.mark.parametrize("name", ("math_qwen25_15b", "math_llama32_3b"))
def test_the_sweeps_have_the_papers_values(config, name):
    sweeps = study.from_config(config("paper_sweeps", name)).sweeps
    assert set(sweeps) == {"call_reward", "group", "rho"}
    assert len(sweeps["call_reward"].at) == 9 and sweeps["group"].at == (2, 4, 8, 16, 32)


def test_an_unknown_form_is_refused_with_those_there_are(config):
    with pytest.raises(ValueError, match="gapg_without_filter"):
        config("math_qwen25_15b", "gagp")


@pytest.mark.parametrize("form", ["full", "smoke"])
def test_recall_has_a_token_for_every_fact(form):
    values = runpy.run_path(str(CONFIGS / "recall_cpu.py"))["get_config"](form)
    found = experiment.from_config(values)
    settings = dataclasses.asdict(found.task)
    task = make_task(settings.pop("name"), "unused", **settings)
    size = task.vocabulary.tokenizer.get_vocab_size()
    assert size <= found.device.vocabulary < size + 130
    assert len(start.lessons(task)) == settings["train"] + settings["validation"] + settings["test"]
    with pytest.raises(ValueError, match="takes full or smoke, not 'huge'"):
        runpy.run_path(str(CONFIGS / "recall_cpu.py"))["get_config"]("huge")


@pytest.mark.parametrize("form", ["full", "smoke"])
def test_arithmetic_for_a_small_device_is_valid_and_has_no_stories(form):
    values = runpy.run_path(str(CONFIGS / "arithmetic_cpu.py"))["get_config"](form)
    assert experiment.from_config(values).device.pretrained is None
    values.task.stories = 0.5
    with pytest.raises(ValueError, match=r"config\.task\.stories must be 0"):
        experiment.from_config(values)


def test_the_start_is_taught_about_the_facts_of_all_splits(monkeypatch):
    found = experiment.from_config(
        runpy.run_path(str(CONFIGS / "recall_cpu.py"))["get_config"]("smoke")
    )
    settings = dataclasses.asdict(found.task)
    task = make_task(settings.pop("name"), "unused", **settings)
    seen = set()
    monkeypatch.setattr(
        start, "trace_batch", lambda _, __, prompts, step: seen.update(p.id for p in prompts)
    )
    monkeypatch.setattr(
        start, "update", lambda state, batch, **_: (state, {"loss": 0.0, "gradient_norm": 0.0})
    )
    stage = start.start_stage(found, SimpleNamespace(task=task))
    for step in range(11):  # of 64; there are 628 facts
        stage.step(None, step)
    assert seen >= {prompt.id for prompt in task.prompts("test")}
