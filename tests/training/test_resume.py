import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from offload_jax.cloud import OracleConfig, make_cloud
from offload_jax.learning.objective import ObjectiveConfig
from offload_jax.learning.update import TrainState
from offload_jax.sampling.sampler import Sampler
from offload_jax.sharding import MeshConfig, make_mesh
from offload_jax.training.checkpoints import Checkpoints, load_policy
from offload_jax.training.data import training_batches
from offload_jax.training.detectors import RunError
from offload_jax.training.experiment import from_config
from offload_jax.training.logging import RunLog
from offload_jax.training.loop import PreemptedError, Stage, run_stage
from offload_jax.training.post_training import init_post_training, post_training_stage
from offload_jax.training.start import init_start, start_stage
from offload_jax.training.workdir import open_workdir


@pytest.fixture(scope="module")
def setting(tiny, tmp_path_factory):
    experiment = tiny.tiny_experiment()
    task = tiny.tiny_task(experiment, tmp_path_factory.mktemp("data"))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=1), jax.devices()[:4])
    cloud = make_cloud(OracleConfig(accuracy=0.9), task, "unused", mesh)
    sampler = Sampler(task, experiment.device, experiment.sampling, mesh)
    with jax.set_mesh(mesh):
        yield experiment, sampler, cloud, mesh


class KilledError(Exception):
    pass


def killed_at(stage: Stage, step: int) -> Stage:
    def until(state, i):
        if i == step:
            raise KilledError
        return stage.step(state, i)

    return Stage(**{**vars(stage), "step": until})


def run(stage, initial, folder, experiment, sampler) -> TrainState:
    with RunLog(folder) as log, Checkpoints(folder / "checkpoints") as checkpoints:
        state = run_stage(stage, initial(), checkpoints, log, experiment.device, sampler.vocabulary)
        return jax.device_get(state)


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if "seconds" not in k and k != "compilations"}
        for line in lines
    ]


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["start", "gapg", "grpo"])
def test_a_killed_and_resumed_stage_is_bitwise_the_uninterrupted_one(setting, tmp_path, name):
    experiment, sampler, cloud, mesh = setting
    if name == "start":
        stage = start_stage(experiment, sampler)
        stage = Stage(**{**vars(stage), "every": 2})

        def initial():
            return init_start(experiment, sampler, mesh)
    else:
        objective = ObjectiveConfig(name, updates=2 if name == "grpo" else 1)
        learning = dataclasses.replace(experiment.learning, objective=objective)
        experiment = dataclasses.replace(experiment, learning=learning)
        stage = post_training_stage(experiment, sampler, cloud, name, warn=lambda: None)

        def initial():
            start = init_start(experiment, sampler, mesh)
            return init_post_training(experiment, start.params, mesh)

    whole = run(stage, initial, tmp_path / "whole", experiment, sampler)
    assert not np.array_equal(whole.params["embedding"], initial().params["embedding"])
    with pytest.raises(KilledError):  # after the checkpoint of step 2, with step 3 already logged
        run(killed_at(stage, 3), initial, tmp_path / "killed", experiment, sampler)
    assert [row["step"] for row in rows(tmp_path / "killed")] == [1, 2, 3]
    resumed = run(stage, initial, tmp_path / "killed", experiment, sampler)
    assert_same_bits(whole, resumed)
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert len(rows(tmp_path / "whole")) == stage.steps
    again = run(killed_at(stage, 0), initial, tmp_path / "killed", experiment, sampler)
    assert_same_bits(whole, again)  # finished: no step is taken


def test_sigterm_saves_the_step_and_the_run_goes_on_from_there(setting, tmp_path):
    experiment, sampler, _, mesh = setting
    stage = Stage(**{**vars(start_stage(experiment, sampler)), "every": 4})

    def terminated(state, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return stage.step(state, step)

    def initial():
        return init_start(experiment, sampler, mesh)

    whole = run(stage, initial, tmp_path / "whole", experiment, sampler)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PreemptedError, match="after step 2 of start, which is saved"):
        stopped = Stage(**{**vars(stage), "step": terminated})
        run(stopped, initial, tmp_path / "stopped", experiment, sampler)
    assert signal.getsignal(signal.SIGTERM) is before
    with Checkpoints(tmp_path / "stopped" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 2
    resumed = run(stage, initial, tmp_path / "stopped", experiment, sampler)
    assert_same_bits(whole, resumed)
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")


def test_a_checkpoint_is_restored_bitwise_and_into_another_mesh(setting, tmp_path):
    experiment, sampler, _, mesh = setting
    state = init_start(experiment, sampler, mesh)
    other_mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=2), jax.devices()[:2])
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FileNotFoundError, match="no checkpoint of step None"):
            checkpoints.restore(state)
        checkpoints.save(state, experiment.device, sampler.vocabulary)
        restored = checkpoints.restore(state)
        assert_same_bits(jax.device_get(state), jax.device_get(restored))
        with jax.set_mesh(other_mesh):
            like = init_start(experiment, sampler, other_mesh)
            elsewhere = checkpoints.restore(like)
    assert_same_bits(jax.device_get(state), jax.device_get(elsewhere))
    assert elsewhere.params["embedding"].sharding == like.params["embedding"].sharding
    assert not list(tmp_path.rglob("*.pkl"))


def is_refused(folder, like) -> bool:
    """Whether restoring is refused, in words; what is restored must be what was saved."""
    with Checkpoints(folder) as checkpoints:
        try:
            restored = checkpoints.restore(like)
        except ValueError as error:
            assert "/0 cannot be restored: " in str(error) and "If it is damaged" in str(error)
            return True
    assert_same_bits(jax.device_get(like), jax.device_get(restored))
    return False


@pytest.mark.parametrize("harm", ["cut", "emptied", "removed", "flipped"])
def test_a_damaged_checkpoint_is_refused_in_words(setting, tmp_path, harm):
    experiment, sampler, _, mesh = setting
    state = init_start(experiment, sampler, mesh)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, experiment.device, sampler.vocabulary)
    refusals = 0
    for path in sorted(p for p in (tmp_path / "0" / "state").rglob("*") if p.is_file()):
        content = path.read_bytes()
        path.unlink()
        middle = len(content) // 2
        if harm == "cut":
            path.write_bytes(content[:middle])
        elif harm == "emptied":
            path.write_bytes(b"")
        elif harm == "flipped":
            bit = bytes([content[middle] ^ 16])
            path.write_bytes(content[:middle] + bit + content[middle + 1 :])
        refusals += is_refused(tmp_path, state)
        path.write_bytes(content)
    assert refusals > 1  # not every file is read: some are of use to tools alone
    assert not is_refused(tmp_path, state)


def test_a_policy_is_not_read_from_damaged_weights(setting, tmp_path):
    experiment, sampler, _, mesh = setting
    with Checkpoints(tmp_path) as checkpoints:
        state = init_start(experiment, sampler, mesh)
        checkpoints.save(state, experiment.device, sampler.vocabulary)
    (prints,) = (tmp_path / "0" / "fingerprints").glob("metadata")
    saved = json.loads(prints.read_text())
    name = next(name for name in saved if name.startswith("params."))
    prints.write_text(json.dumps(saved | {name: saved[name] ^ 1}))
    with pytest.raises(ValueError, match=rf"/0 cannot be read, damaged or .*: {name} is not"):
        load_policy(tmp_path, mesh)


def test_a_foreign_checkpoint_is_refused_in_words(setting, tmp_path):
    experiment, sampler, _, mesh = setting
    with Checkpoints(tmp_path) as checkpoints:
        state = init_start(experiment, sampler, mesh)
        checkpoints.save(state, experiment.device, sampler.vocabulary)
    wider = dataclasses.replace(experiment.device, width=24)
    experiment = dataclasses.replace(experiment, device=wider)
    assert is_refused(tmp_path, init_start(experiment, sampler, mesh))


def test_a_checkpoint_holds_what_was_saved_although_the_next_step_reuses_its_memory(
    setting, tmp_path
):
    experiment, sampler, _, mesh = setting
    state = init_start(experiment, sampler, mesh)
    before = jax.tree.map(np.array, jax.device_get(state))
    forget = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 + 7, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, experiment.device, sampler.vocabulary)
        state = state.replace(params=forget(state.params))
        restored = checkpoints.restore(init_start(experiment, sampler, mesh))
    assert_same_bits(before, jax.device_get(restored))


def test_a_diverged_stage_stops_and_leaves_its_last_checkpoint(setting, tmp_path):
    experiment, sampler, _, mesh = setting

    def diverge(state, step):
        return state.replace(step=state.step + 1), {"loss": np.nan if step == 2 else 1.0}

    stage = Stage("start", 4, 2, diverge, "config.start.optimizer.rate")
    with pytest.raises(RunError, match=r"step 3: loss is nan.*config\.start\.optimizer\.rate"):
        run(stage, lambda: init_start(experiment, sampler, mesh), tmp_path, experiment, sampler)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 2


def test_the_prompts_of_a_step_follow_from_seed_and_step(setting):
    prompts = setting[1].task.prompts("train")
    ids = lambda seed, step: [p.id for p in training_batches(prompts, 8, seed, "start")[step]]  # noqa: E731
    assert ids(0, 7) == ids(0, 7)
    assert ids(0, 7) != ids(1, 7) and ids(0, 7) != ids(0, 8)
    epoch = [i for step in range(5) for i in ids(0, step)]
    assert sorted(epoch) == sorted(p.id for p in prompts)
    assert epoch != [i for step in range(5, 10) for i in ids(0, step)]


def test_a_workdir_with_a_checkpoint_belongs_to_one_experiment(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("offload_jax.training.workdir.OPTIONAL", ("pytest", "no-such-package"))
    mistaken = tiny.tiny_config()
    mistaken.learning.optimizer.rate = 0.5
    open_workdir(tmp_path / "run", from_config(mistaken))
    experiment = tiny.tiny_experiment()
    workdir = open_workdir(tmp_path / "run", experiment)  # nothing was trained: no harm done
    assert json.loads((workdir / "config.json").read_text())["learning"]["optimizer"]["rate"] < 0.5
    packages = json.loads((workdir / "environment.json").read_text())["packages"]
    assert packages["jax"] and "no-such-package" not in packages
    assert packages["pytest"] == pytest.__version__  # optional, and installed
    (workdir.checkpoints("start") / "2").mkdir(parents=True)
    before = json.loads((workdir / "environment.json").read_text())
    open_workdir(tmp_path / "run", experiment)
    assert json.loads((workdir / "environment.json").read_text()) == before
    monkeypatch.setattr("offload_jax.training.workdir._git", lambda *_: "another")
    for _ in range(2):  # what began the run stays; what came back is told once
        open_workdir(tmp_path / "run", experiment)
        said = json.loads((workdir / "environment.json").read_text())
        assert [later["git_revision"] for later in said.pop("afterwards")] == ["another"]
        assert said == before
    with pytest.raises(ValueError, match=r"config\.learning\.optimizer\.rate was .*, now 0\.5"):
        open_workdir(tmp_path / "run", from_config(mistaken))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be used"):
        open_workdir(tmp_path / "file", experiment)
