"""A map of regimes: studies side by side, read from what they left."""

import copy
import dataclasses
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rich.console

from offload_jax.evaluation.metrics import capped
from offload_jax.evaluation.seeds import pooled_difference
from offload_jax.training import regimes
from offload_jax.training.logging import read_metrics
from offload_jax.training.study_table import dialled, seeds_of

ROOT = Path(__file__).parents[2]
SHAPE = {"data": 8, "fsdp": 1, "tensor": 1}
RIVAL = "gapg_without_filter"


def config_of(size):
    spec = importlib.util.spec_from_file_location("regimes_cpu", ROOT / "configs/regimes_cpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(size)


@pytest.fixture(scope="module")
def config(tiny):
    config = config_of("smoke")
    overrides = {**tiny.OVERRIDES, "learning.filter.enabled": True, "learning.steps": 3}
    for name, study in config.regimes.items():
        own = {"start.late_steps": 0}
        if name in ("arithmetic", "recall_unnoticed"):
            if name == "arithmetic":
                own["task.steps"] = (1, 2)
            countdowns = ("start.traces.max_tokens", "start.late_traces.max_tokens")
            study.base.update_from_flattened_dict(
                {key: x for key, x in overrides.items() if key not in countdowns} | own
            )
        else:
            study.base.update_from_flattened_dict(overrides)
        del study.methods.collaboration_aware
        for sweep in study.sweeps.values():
            sweep.at, sweep.methods, sweep.seeds = (0.45, 0.6), (RIVAL, "gapg"), (200,)
    config = config.to_dict()
    for study in config["regimes"].values():
        study["base"]["mesh"] = SHAPE
    config["regimes"]["arithmetic"]["seeds"] = (200,)
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """Two of three regimes are complete."""
    path = tmp_path_factory.mktemp("regimes")
    studies = regimes.from_config(config)
    regimes.compute(studies, path, quiet(), only=["common", "arithmetic"])
    regimes.report(studies, path, quiet())
    return studies, path


def quiet():
    return rich.console.Console(file=io.StringIO(), width=100)


def test_the_map_has_what_is_complete_and_names_the_rest(finished):
    _, path = finished
    text = (path / "regimes.md").read_text()
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    points = [
        "| arithmetic", "| common", "| common, reward.call 0.45", "| common, reward.call 0.6"
    ]  # fmt: skip
    best = "| common, reward.call at each method's best (0."
    for table in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        assert table[:-1] == ["| ", *points] and table[-1].startswith(best)
    assert "Not run: early, recall_unnoticed." in text
    assert (path / "regimes.png").stat().st_size > 10_000
    assert not (path / "early").exists()
    assert [file.name for file in path.glob("*.*.png")] == ["common.call_reward.png"]


def test_a_regime_without_a_rival_has_a_table_and_no_picture(finished, tmp_path):
    studies, path = finished
    study = studies["arithmetic"]
    alone = dataclasses.replace(study, methods={"gapg": study.methods["gapg"]}, sweeps={})
    shutil.copytree(path / "arithmetic", tmp_path / "arithmetic")
    regimes.report({"arithmetic": alone}, tmp_path, quiet())
    assert "| arithmetic |" in (tmp_path / "regimes.md").read_text()
    assert not (tmp_path / "regimes.png").exists()


def test_its_numbers_follow_from_records_and_metrics(finished):
    studies, path = finished
    _, main, same, high, _ = json.loads((path / "regimes.json").read_text())
    seeds = seeds_of(studies["common"], path / "common")
    for point, suffix, split in ((main, "", "test"), (high, ".call_reward.0.6", "validation")):
        seeds = seeds[: point["seeds"]]
        results = {m: [s.results(m + suffix, split) for s in seeds] for m in ("gapg", RIVAL)}
        outcomes = {
            m: [capped(r, 0.3, s.seed) for r, s in zip(rows, seeds, strict=True)]
            for m, rows in results.items()
        }
        ahead = pooled_difference(outcomes["gapg"], outcomes[RIVAL])
        assert point["methods"][RIVAL]["ahead"]["value"] == ahead.value
        assert point["methods"]["gapg"]["ahead"] is None
        dial = [dialled(r, 0.3, s.seed) for r, s in zip(results["gapg"], seeds, strict=True)]
        assert point["methods"]["gapg"]["dial"] == np.mean([each.correct.mean() for each in dial])
        assert all(each.offloaded.sum() == 2 for each in dial)
        calls = np.mean([row.called.mean() for row in results["gapg"]])
        assert point["methods"]["gapg"]["calls"] == pytest.approx(calls)
        assert point["n"] == 8
        assert 0 <= point["start"] <= 1 and 0 <= point["random"] <= 1
    assert same["methods"].keys() == main["methods"].keys()
    assert [point["seeds"] for point in (main, same, high)] == [2, 1, 1]


def test_every_method_is_compared_at_its_best_value_too(finished):
    studies, path = finished
    _, _, *swept, best = json.loads((path / "regimes.json").read_text())
    for method in ("gapg", RIVAL):
        overall = [point["methods"][method]["overall"] for point in swept]
        assert best["methods"][method]["overall"] == max(overall)
        value = (0.45, 0.6)[overall.index(max(overall))]  # the method's own wins a tie
        assert str(value) in best["name"]
    (seed, _) = seeds_of(studies["common"], path / "common")
    names = best["name"].rpartition("(")[2].rstrip(")").split(", ")  # rival, then GAPG
    policies = {
        method: method + ("" if value == "0.45" else f".call_reward.{value}")
        for method, value in zip((RIVAL, "gapg"), names, strict=True)
    }
    own, rival = (
        [capped(seed.results(policies[m], "validation"), 0.3, seed.seed)] for m in ("gapg", RIVAL)
    )
    assert best["methods"][RIVAL]["ahead"]["value"] == pooled_difference(own, rival).value


def test_the_filter_binds_where_d2_is_at_its_cap(finished):
    studies, path = finished
    main = json.loads((path / "regimes.json").read_text())[1]
    early, late = [], []
    for seed in seeds_of(studies["common"], path / "common"):
        for row in read_metrics(seed.workdir / "metrics.jsonl"):
            if row["stage"] == "gapg" and "d1" in row:
                (early if row["step"] <= 1 else late).append(row["d2"] == row["d1"] * 3 // 7)
    assert main["binding"] == [np.mean(early), np.mean(late)] and len(early) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"config\.regimes must have regimes"),
        ({"a b": None}, r"'a b' must be of letters"),
    ],
)
def test_a_mistake_in_a_map_is_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        regimes.from_config({"regimes": change})


def test_a_mistake_in_a_regime_is_named_with_its_path(config):
    changed = copy.deepcopy(config)
    changed["regimes"]["early"]["base"]["learning"]["stesp"] = 3
    with pytest.raises(ValueError, match=r"config\.regimes\.early: .*stesp"):
        regimes.from_config(changed)
    with pytest.raises(ValueError, match="one section, regimes"):
        regimes.from_config({**config, "seeds": (0,)})


def test_regimes_that_do_not_fit_are_told_before_one_is_trained(config, tmp_path):
    changed = copy.deepcopy(config)
    changed["regimes"]["early"]["base"]["mesh"] = {**SHAPE, "data": 4}
    with pytest.raises(ValueError, match=r"config\.regimes\.early\.base\.mesh is not that of"):
        regimes.compute(regimes.from_config(changed), tmp_path, quiet(), only=["common", "early"])
    other = tmp_path / "early" / "seed201"
    (other / "records").mkdir(parents=True)
    (other / "records" / "start.jsonl").write_text("")
    (other / "config.json").write_text('{"seed": 7}')
    with pytest.raises(ValueError, match="seed201 holds a run with other settings"):
        regimes.compute(regimes.from_config(config), tmp_path, quiet(), only=["common", "early"])
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_an_unknown_regime_on_the_command_line_is_told(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.regimes", "--config=configs/regimes_cpu.py:smoke",
         f"--workdir={tmp_path / 'map'}", "--only=erly"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and "'erly' is no regime" in done.stderr
    assert "early" in done.stderr and not (tmp_path / "map").exists()


def test_a_map_without_any_complete_regime_is_told(config, tmp_path):
    with pytest.raises(ValueError, match="has no complete regime"):
        regimes.report(regimes.from_config(config), tmp_path, quiet())


def test_every_regime_of_the_config_differs_in_what_its_name_says():
    full = regimes.from_config(config_of("full"))
    base = full["common"].base
    assert full["hopeless"].base.task.four > base.task.four
    assert full["early"].base.start.late_traces.impatience > base.start.late_traces.impatience
    assert full["weak"].base.start.steps < base.start.steps
    assert full["arithmetic"].base.task.name == "arithmetic"
    known = {
        name.removeprefix("recall_"): (study.base.task.known, study.base.task.mistaken)
        for name, study in full.items()
        if study.base.task.name == "recall"
    }
    assert set(known) == {"unnoticed", "noticed", "able"}
    assert known["unnoticed"][0] == known["noticed"][0] < known["able"][0]
    assert known["unnoticed"][1] > known["able"][1] > known["noticed"][1] == 0
    for study in full.values():
        assert set(study.methods) == {"collaboration_aware", RIVAL, "gapg"}
        assert len(study.seeds) >= 3 and study.base.evaluation.test_prompts >= 1000
