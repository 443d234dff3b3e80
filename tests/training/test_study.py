"""A study: what methods share is done once, and the table follows from what lies on disk."""

import copy
import dataclasses
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console

from offload_jax.evaluation.metrics import capped
from offload_jax.evaluation.records import columns, read_records
from offload_jax.tasks.countdown.task import CountdownTask
from offload_jax.training import study as study_module
from offload_jax.training import study_table
from offload_jax.training.study import compute, from_config, read_scores, variant_name
from offload_jax.training.study_report import report
from offload_jax.training.study_table import entries, seeds_of
from tests.evaluation.samples import many, record

CONFIG = Path(__file__).parents[2] / "configs" / "countdown_cpu_table.py"
SHAPE = {"data": 2, "fsdp": 1, "tensor": 1}
SWEEP = {"setting": "sampling.group", "at": (2,), "methods": ("gapg",), "seeds": (0,)}


def config_of(size, tiny=None):
    spec = importlib.util.spec_from_file_location("countdown_cpu_table", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(size)
    if tiny:
        config.base.update_from_flattened_dict(tiny.OVERRIDES)
    return config.to_dict()


@pytest.fixture(scope="module")
def settings(tiny):
    config = config_of("smoke", tiny)
    config["base"]["learning"]["steps"] = 2
    config["base"]["mesh"] = {**SHAPE, "data": 8}
    config["seeds"] = (0, 1)
    for name in ("collaboration_aware_grpo", "gapg_without_filter"):
        del config["methods"][name]
    config["routers"] = {"prompt_router": config["routers"]["prompt_router"]}
    config["routers"]["prompt_router"] |= {"width": 16, "heads": 2, "mlp": 16, "batch": 8}
    config["sweeps"] = {
        "call_reward": {
            "setting": "learning.reward.call",
            "at": (0.1, 0.45),
            "methods": ("gapg",),
            "seeds": (0, 7),
        }
    }
    return config


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("study")
    study = from_config(settings)
    compute(study, path, quiet())
    report(study, path, quiet())
    return study, path


def quiet():
    return rich.console.Console(file=io.StringIO(), width=100)


def test_it_leaves_tables_and_figures(finished):
    study, path = finished
    for name in ("table.md", "table.tex", "table.json", "study.json"):
        assert (path / name).stat().st_size > 0
    for name in ("training", "budgets", "difficulty", "call_reward"):
        assert (path / "figures" / f"{name}.png").stat().st_size > 10_000
    methods, swept = (path / "validation.md").read_text().split("\n\n")
    assert swept.startswith(
        "| learning.reward.call | 0.1 | 0.45 |\n|---|---:|---:|\n| GAPG: overall |"
    )
    title, _, *rows = [line.strip("| ").split(" | ") for line in methods.splitlines()]
    assert title[0].endswith("mean of 2 seeds")
    assert [row[0] for row in rows] == [
        "Task-Tuning Only",
        "Collaboration-Aware (Dr.GRPO)",
        "GAPG",
    ]
    tuned = [seed.results("task_tuned", "validation") for seed in seeds_of(study, path)]
    alone = 100 * np.mean([results.device_correct.mean() for results in tuned])
    assert rows[0][1:3] == [f"{alone:.1f}", f"{alone:.1f}"]
    table = json.loads((path / "table.json").read_text())
    assert [method["name"] for method in table["methods"]] == [
        "Cloud LLM",
        "Start",
        "Task-Tuning Only",
        "& Naive Offloading",
        "& Router: prompt, DeBERTa",
        "& log-probability",
        "& P(call)",
        "& self-consistency",
        "& oracle",
        "Collaboration-Aware (Dr.GRPO)",
        "Collaboration-Aware (Dr.GRPO) + dial",
        "GAPG",
        "GAPG + dial",
    ]


def test_a_finished_study_is_only_reported(finished, monkeypatch):
    study, path = finished

    def refuse(*_, **__):
        raise AssertionError("nothing is left to do")

    for name in ("train_router",):
        monkeypatch.setattr(study_module, name, refuse)
    monkeypatch.setattr("offload_jax.training.run.evaluate", refuse)
    before = (path / "table.json").read_text()
    stages = {s: (path / f"seed{s}" / "metrics.jsonl").read_text() for s in study.seeds}
    compute(study, path, quiet())
    report(study, path, quiet())
    assert (path / "table.json").read_text() == before
    for seed, text in stages.items():
        assert (path / f"seed{seed}" / "metrics.jsonl").read_text() == text


def test_a_finished_study_is_reported_without_its_weights(finished, tmp_path, monkeypatch):
    study, path = finished
    folder = shutil.copytree(path, tmp_path / "copy")
    for seed in study.seeds:
        for part in ("checkpoints", "data", "routers"):
            shutil.rmtree(folder / f"seed{seed}" / part)
    monkeypatch.setattr(study_module, "Job", None)
    compute(study, folder, quiet())
    report(study, folder, quiet())
    assert (folder / "table.json").read_text() == (path / "table.json").read_text()


@pytest.mark.parametrize(
    ("file", "source", "change", "message"),
    [
        ("gapg", "collaboration_aware", {}, "gapg.jsonl holds the records of collaboration_aware"),
        ("gapg", "../../seed1/records/gapg", {}, "gapg.jsonl holds the records of gapg, seed 1"),
        ("gapg.validation", "gapg", {}, "validation prompts: two policies can only be compared"),
        ("gapg", "gapg", {"question": "Make 1 from 1."}, "they come from different data"),
        ("gapg", "gapg", {"gold": {"numbers": [1], "target": 1}}, "come from different data"),
        ("gapg", "gapg", {"prompt_id": 2**70}, "line 1, is not a record: a record's prompt_id"),
        ("gapg", "gapg", {"device_tokens": 10**6}, "cannot have device_tokens=1000000"),
        ("gapg", "gapg", {"logprob": 5.0}, "a record's logprob cannot be positive: 5.0"),
        ("start.validation", "start", {"policy": "start"}, "are test and validation prompts"),
    ],
)
def test_records_of_something_else_are_refused(finished, tmp_path, file, source, change, message):
    study, path = finished
    folder = shutil.copytree(path, tmp_path / "copy", ignore=shutil.ignore_patterns("check*"))
    records = folder / "seed0" / "records"
    first, *rest = (records / f"{source}.jsonl").read_text().splitlines(keepends=True)
    text = json.dumps({**json.loads(first), **change}) + "\n" + "".join(rest)
    (records / f"{file}.jsonl").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        entries(study, folder)


def test_records_of_another_cloud_are_refused(finished, tmp_path):
    study, path = finished
    folder = shutil.copytree(path, tmp_path / "copy", ignore=shutil.ignore_patterns("check*"))
    file = folder / "seed0" / "records" / "gapg.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    flipped = [{**row, "cloud_correct": not row["cloud_correct"]} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in flipped))
    with pytest.raises(ValueError, match="come from different clouds"):
        entries(study, folder)


@pytest.mark.parametrize(
    ("score", "stands"), [(0.5, True), (7.5, False), (-0.1, False), (1, False), (None, False)]
)
def test_a_router_score_is_a_probability(tmp_path, score, stands):
    path = tmp_path / "router.test.jsonl"
    path.write_text(json.dumps({"prompt_id": 3, "score": score}) + "\n")
    if stands:
        assert read_scores(path, [3]) == [score]
    else:
        with pytest.raises(ValueError, match=r"router.test.jsonl, line 1"):
            read_scores(path, [3])


def test_rows_follow_from_records_and_scores(finished):
    study, path = finished
    rows, cap = entries(study, path), study.base.evaluation.cap
    for i, seed in enumerate(seeds_of(study, path)):
        own = seed.results("gapg")
        expected = capped(own, cap, seed.seed)
        np.testing.assert_array_equal(rows["GAPG"][i].outcome.correct, expected.correct)
        tuned = seed.results("task_tuned")
        alone = rows["Task-Tuning Only"][i].outcome
        np.testing.assert_array_equal(alone.correct, tuned.device_correct)
        scores = read_scores(
            study_module.scores_path(seed.workdir, "prompt_router", "test"), tuned.prompt_ids
        )
        np.testing.assert_array_equal(rows["& Router: prompt, DeBERTa"][i].scores, scores)
        assert rows["& oracle"][i].outcome.correct.sum() >= alone.correct.sum()
        for row in rows.values():
            entry = row[min(i, len(row) - 1)]
            assert entry.outcome.offloaded.mean() <= cap or row is rows["Cloud LLM"]


def test_what_routers_learn_from_costs_no_calls(finished):
    study, path = finished
    for seed in seeds_of(study, path):
        records = read_records(seed.workdir.records("task_tuned.train"))
        assert len(records) > 8
        assert all((record.cloud_correct is not None) == record.called for record in records)


def test_a_router_learns_whom_the_device_fails_by_its_fallback_too(finished):
    records = [record(0, "right"), record(1, "wrong")]
    records += [record(2, "call", fallback=True), record(3, "call", fallback=False)]
    study, path = finished
    job = SimpleNamespace(sampler=SimpleNamespace(task=CountdownTask(path)), experiment=study.base)
    examples = study_module._examples(job, study.routers["prompt_router"], records)
    assert examples.labels.tolist() == [False, True, False, True]


def test_a_sweep_is_left_out_where_the_study_has_none_of_its_seeds(settings):
    study = from_config({**settings, "seeds": (1,)})
    assert study.swept("call_reward") == ()
    assert from_config(settings).swept("call_reward") == (0,)


def test_the_row_of_the_oracle_gives_away_nothing_that_the_device_alone_solves():
    results = columns(many(["right"] * 9 + ["wrong"], [False] * 10))
    seed = SimpleNamespace(seed=0, results=lambda policy, split="test": results)
    study = dataclasses.replace(from_config(config_of("main")), routers={}, samples=0)
    outcome = study_table._routed_rows(study, seed, (results, results))["& oracle"].outcome
    assert outcome.correct.sum() == 9 and outcome.offloaded.sum() <= 1


def test_a_variant_with_the_methods_own_value_is_not_trained_again(finished):
    _, path = finished
    names = {path.stem for path in (path / "seed0" / "records").glob("*.jsonl")}
    other, own = (variant_name("call_reward", "gapg", value) for value in (0.1, 0.45))
    assert f"{other}.validation" in names and other not in names  # no test prompt is looked at
    assert f"{own}.validation" not in names
    assert not list((path / "seed1" / "records").glob("*call_reward*"))


def test_another_setting_under_the_same_name_is_refused(finished, settings):
    _, path = finished
    changed = copy.deepcopy(settings)
    changed["methods"]["gapg"] = {"learning": {"reward": {"call": 0.2}}}
    with pytest.raises(ValueError, match=r"study\.json holds other settings"):
        compute(from_config(changed), path, quiet())


def test_another_number_of_samples_is_refused(finished, settings):
    _, path = finished
    with pytest.raises(ValueError, match=r"config\.samples was 2, now 4"):
        compute(from_config({**settings, "samples": 4}), path, quiet())


@pytest.mark.parametrize(
    "line", ['{"prompt_id": [1], "score": 0.5}', '{"prompt_id": 1, "score": null}', "[]", "{"]
)
def test_a_damaged_score_is_named(tmp_path, line):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"prompt_id": 7, "score": 0.5}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"scores\.jsonl, line 2, is not"):
        read_scores(path, [7, 1])


def test_scores_of_other_prompts_are_refused(finished):
    study, path = finished
    scores = study_module.scores_path(seeds_of(study, path)[0].workdir, "prompt_router", "test")
    with pytest.raises(ValueError, match="is about other prompts"):
        read_scores(scores, [1, 2, 3])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seedz": (0,)}, r"config\.seedz is not a setting; did you mean 'seeds'"),
        ({"seeds": (0, 0)}, r"config\.seeds is \(0, 0\); it must be different integers"),
        ({"routed": None}, r"config\.routed is None: config\.routers must be empty"),
        ({"routed": "gpag"}, r"config\.routed is 'gpag'; it must be in config\.methods"),
        ({"methods": {"start": {}, "gapg": {}, "task_tuned": {}}}, r"methods\.start"),
        ({"methods": {"task_tuned": {}}}, r"config\.methods needs gapg"),
        ({"routed": "gapg"}, r"config\.methods needs gapg.* besides the method of config\.routed"),
        ({"methods": {"a.b": {}, "gapg": {}, "task_tuned": {}}}, r"'a\.b', in config\.methods"),
        ({"seeds": 3}, r"config\.seeds is 3; it must be different integers"),
        ({"seeds": (0, -1)}, r"config\.seed must be between 0"),
        ({"samples": "8"}, r"config\.samples is '8'"),
        ({"base": {"seed": 7}}, r"config\.base\.seed: seeds are listed in config\.seeds"),
        (
            {"methods": {"task_tuned": {"seed": 7}, "gapg": {}}},
            r"config\.methods\.task_tuned\.seed: seeds are listed in config\.seeds",
        ),
        (
            {"sweeps": {"a": {**SWEEP, "setting": "seed", "at": (1, 2)}}},
            r"config\.sweeps\.a\.setting is seed; seeds are listed in config\.seeds",
        ),
        ({"sweeps": {"a": {**SWEEP, "seeds": ()}}}, r"config\.sweeps\.a.*seeds must not be empty"),
        ({"methods": None}, r"config\.methods must be a section"),
        (
            {"methods": {"task_tuned": {"learning": {"stepz": 3}}}},
            r"config\.methods\.task_tuned: config\.learning\.stepz is not a setting",
        ),
        (
            {"methods": {"task_tuned": {}, "gapg": {"device": {"width": 64}}}},
            r"config\.methods\.gapg changes device, which all methods share",
        ),
        (
            {"sweeps": {"a": {**SWEEP, "setting": "cloud.accuracy", "at": (0.5,)}}},
            r"config\.sweeps\.a changes cloud, which all methods share",
        ),
        (
            {"sweeps": {"g": {**SWEEP, "methods": ("x",)}}},
            r"config\.sweeps\.g\.methods: 'x' is not in config\.methods",
        ),
    ],
)
def test_a_mistake_is_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_config({**config_of("smoke"), **change})


def test_the_papers_rows_are_configs():
    study = from_config(config_of("main"))
    tuned = study.methods["task_tuned"].learning
    assert tuned.reward.call == 0 and not tuned.filter.enabled
    rival = study.methods["collaboration_aware"].learning
    assert rival.objective.name == "dr_grpo" and rival.reward.call > 0 and not rival.filter.enabled
    gapg = study.methods["gapg"].learning
    assert gapg.objective.name == "gapg" and gapg.filter.enabled
    assert gapg.optimizer == rival.optimizer
    assert tuned.optimizer == dataclasses.replace(gapg.optimizer, rate=1e-4)  # by the grid


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--config.seeds=(0,0)", "config.seeds is (0, 0); it must be different integers."),
        ("--config.base.learning.stepz=3", "--config.base.learning.stepz is not in the config."),
        ("--workdir=", "--workdir is empty; name a folder."),
        ("--config=configs/countdown_cpu.py", "for experiments.launch, not for experiments.table."),
    ],
)
def test_the_command_says_a_mistake_in_one_sentence(tmp_path, flag, sentence):
    command = [sys.executable, "-m", "experiments.table", f"--workdir={tmp_path}",
               f"--config={CONFIG}:smoke", flag]  # fmt: skip
    done = subprocess.run(command, cwd=CONFIG.parents[1], capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
