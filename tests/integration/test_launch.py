import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from offload_jax.evaluation.records import read_records
from offload_jax.training.checkpoints import load_policy

ROOT = Path(__file__).parents[2]


def environment(devices=None):
    """This process's environment, but for the devices that the other tests fake."""
    flags = os.environ["QUICK_XLA_FLAGS"]
    if devices:
        flags += f" --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags}


def launch(workdir, *flags, devices=None):
    """(exit status, everything printed) of the launcher in a process of its own."""
    command = [sys.executable, "-m", "experiments.launch", f"--workdir={workdir}", *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def flags(tiny):
    return ["--config=configs/countdown_cpu.py:smoke", *tiny.tiny_flags()]


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    status, printed = launch(workdir, *flags)
    assert status == 0, printed
    return workdir, printed


def test_the_main_job_leaves_all_that_it_promises(finished):
    workdir, printed = finished
    for name in ("GAPG", "random", "cloud only", "GAPG − start"):
        assert name in printed
    for name in ("config.json", "environment.json", "metrics.jsonl", "table.md", "curves.png"):
        assert (workdir / name).stat().st_size > 0
    assert list((workdir / "tensorboard").rglob("*tfevents*"))
    for policy in ("start", "gapg"):
        records = read_records(workdir / "records" / f"{policy}.jsonl")
        assert len(records) == 8 and all(r.cloud_correct is not None for r in records)
        assert (workdir / "checkpoints" / policy / "4").is_dir()
    dial = read_records(workdir / "records" / "gapg.validation.jsonl")
    assert len(dial) == 8 and {r.prompt_id for r in dial}.isdisjoint(r.prompt_id for r in records)
    assert "Traceback" not in printed and "Warning" not in printed


def test_the_same_command_again_says_that_it_is_finished(finished, flags):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_text(), (workdir / "table.md").read_text()
    status, printed = launch(workdir, *flags)
    assert status == 0 and "is finished" in printed and "GAPG" in printed
    assert before == ((workdir / "metrics.jsonl").read_text(), (workdir / "table.md").read_text())


def test_what_is_missing_is_made_again_from_what_is_there(finished, flags):
    workdir, _ = finished
    table = (workdir / "table.md").read_text()
    records = (workdir / "records" / "gapg.jsonl").read_text()
    (workdir / "table.md").unlink()
    (workdir / "records" / "gapg.jsonl").unlink()
    status, printed = launch(workdir, *flags)
    assert status == 0, printed
    assert (workdir / "table.md").read_text() == table
    assert (workdir / "records" / "gapg.jsonl").read_text() == records


def rows(workdir):
    """metrics.jsonl without what a clock or a compiler has put there."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if "seconds" not in k and k != "compilations"}
        for line in lines
    ]


def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(flags, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    longer = [*flags, "--config.learning.steps=20"]  # with a checkpoint every other step
    assert launch(whole, *longer)[0] == 0
    seed = random.randrange(2**32)
    print(f"kills drawn from seed {seed}")
    rng = random.Random(seed)
    for after in sorted(rng.sample(range(1, 20), 2)):
        kill(killed, longer, after, rng.uniform(0, 0.1))
    assert not (killed / "records" / "gapg.jsonl").exists()
    assert launch(killed, *longer)[0] == 0
    assert rows(killed) == rows(whole)
    for policy in ("start", "gapg"):
        records = [folder / "records" / f"{policy}.jsonl" for folder in (killed, whole)]
        assert records[0].read_text() == records[1].read_text()
    ends = [load_policy(folder / "checkpoints" / "gapg")[0] for folder in (killed, whole)]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def kill(workdir, flags, step, seconds):
    """Launches, and kills so many seconds after the row of a step of GAPG has been written."""
    command = [sys.executable, "-m", "experiments.launch", f"--workdir={workdir}", *flags]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    metrics = workdir / "metrics.jsonl"
    row = f'"step": {step}, "stage": "gapg"'
    while not (metrics.exists() and row in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    process.wait()


def test_it_runs_on_eight_devices_with_all_three_mesh_axes(flags, tmp_path):
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    status, printed = launch(tmp_path, *flags, *mesh, devices=8)
    assert status == 0, printed
    assert (tmp_path / "table.md").exists()


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("--config.learning.stesp=3", "steps"),
        ("--config.mesh.tensor=3", "config.mesh"),
        ("--config.device.vocabulary=20", "config.device.vocabulary"),
        ("--config.sampling.prompt_tokens=7", "config.sampling.prompt_tokens"),
        ("--config.learning.reward.call=7.0", "answer >= call >= format"),
        ("stray", "stray"),
        ("--config=configs/nope.py", "Error: --config: there is no file 'configs/nope.py'."),
        (
            "--config=configs/countdown_cpu.py:nope",
            "Error: --config=configs/countdown_cpu.py",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_told_without_a_traceback(
    flags, tmp_path, mistake, sentence
):
    status, printed = launch(tmp_path / "run", *flags, mistake)
    assert status != 0 and sentence in printed and "Traceback" not in printed
    assert not (tmp_path / "run" / "checkpoints").exists()
