"""Training against an endpoint that fails: it goes on, says so, and pays for nothing twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.fake_cloud import solve
from offload_jax.cloud.fake import FakeCloud, running
from offload_jax.cloud.ledger import account
from offload_jax.evaluation.records import read_records

pytest.importorskip("openai")
ROOT = Path(__file__).parents[2]
CONFIG = "configs/countdown_cloud.py:smoke"


def started(tiny, workdir, url, *flags, key="sk-test"):
    command = [
        sys.executable, "-m", "experiments.launch", f"--config={CONFIG}", f"--workdir={workdir}",
        *tiny.tiny_flags(), f"--config.cloud.base_url={url}", "--config.cloud.wait=0.01",
        "--config.cloud.deadline=5.0", "--config.mesh.cpu_devices=1", *flags,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "OPENAI_API_KEY": key,
        "XLA_FLAGS": os.environ["QUICK_XLA_FLAGS"],
        "JAX_PLATFORMS": "cpu",
    }
    if not key:
        del environment["OPENAI_API_KEY"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def ended(child):
    out, err = child.communicate()
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def launch(*args, **kwargs):
    return ended(started(*args, **kwargs))


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == "gapg"]


@pytest.mark.slow  # its parts are tested in tests/cloud and tests/training
def test_a_run_survives_a_cloud_that_fails_and_a_second_one_pays_nothing(tiny, tmp_path):
    fake = FakeCloud(solve, {"500": 0.3, "garbage": 0.1, "429": 0.1}, models=["fake"])
    with running(fake) as url:
        ledger = f"--config.cloud.ledger={tmp_path / 'shared.sqlite'}"
        once = launch(tiny, tmp_path / "a", url, ledger, "--config.cloud.attempts=1")
        assert once.returncode == 0, once.stderr
        rows = metrics(tmp_path / "a")
        assert len(rows) == 4 and all(row["cloud/seconds"] >= 0 for row in rows)
        records = read_records(tmp_path / "a" / "records" / "gapg.jsonl")
        failed = [r for r in records if r.cloud_failure is not None]
        assert failed and all(r.cloud_correct is None for r in failed)
        asked = [r for r in records if r.cloud_failure is None]
        assert asked and all(r.cost > 0 and r.cloud_seconds > 0 for r in asked)
        assert "sk-test" not in "".join(
            path.read_text(errors="ignore")
            for path in (tmp_path / "a").rglob("*")
            if path.is_file()
        )
        fake.faults = {}
        assert launch(tiny, tmp_path / "b", url, ledger).returncode == 0
        paid = len(fake.requests)
        again = launch(tiny, tmp_path / "c", url, ledger)  # the same training, all in the cache
        assert again.returncode == 0 and len(fake.requests) == paid
        for name in ("gapg", "start"):
            one, other = (tmp_path / run / "records" / f"{name}.jsonl" for run in "bc")
            assert one.read_text() == other.read_text()
    runs = {row["run"] for row in account(tmp_path / "shared.sqlite")}
    assert runs == {str(tmp_path / "a"), str(tmp_path / "b")}


@pytest.mark.slow  # its parts are tested in tests/cloud and tests/training
def test_a_spent_budget_stops_training_in_one_sentence(tiny, tmp_path):
    with running(FakeCloud(solve, models=["fake"])) as url:
        said = launch(tiny, tmp_path / "run", url, "--config.cloud.budget.calls=9",
                      "--config.start.late_traces.impatience=1.0")  # fmt: skip
        # The start's evaluation asks for 8 test prompts; training then has one call left.
        calls = sum(row["attempts"] for row in account(tmp_path / "run" / "cloud.sqlite"))
    assert calls <= 9
    if said.returncode:
        assert said.returncode == 1 and "budget is spent" in said.stderr
        assert "Traceback" not in said.stderr
    else:  # the tiny policy may not have called at all
        assert all(row["cloud/asked"] == 0 for row in metrics(tmp_path / "run"))


@pytest.mark.slow  # its parts are tested in tests/cloud
def test_ctrl_c_ends_a_run_that_waits_for_the_cloud(tiny, tmp_path):
    fake = FakeCloud(solve, {"stall": 1.0}, models=["fake"])
    with running(fake) as url:
        child = started(tiny, tmp_path / "run", url, "--config.cloud.attempt_timeout=300.0",
                        "--config.cloud.deadline=300.0")  # fmt: skip
        while not fake.requests and child.poll() is None:
            time.sleep(0.1)
        time.sleep(0.5)  # all of the batch are under way
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        said = ended(child)
    assert said.returncode == 130 and time.monotonic() - began < 5.0, said.stderr
    assert said.stderr.splitlines()[-1].startswith("Interrupted: the same command goes on")
    assert "Traceback" not in said.stderr
    (row,) = account(tmp_path / "run" / "cloud.sqlite")
    assert row["outcome"] == "lost" and row["attempts"] == row["estimated"] == len(fake.requests)


@pytest.mark.parametrize(
    ("flags", "key", "message"),
    [
        ((), "", "environment variable OPENAI_API_KEY"),
        (("--config.cloud.model=nobody",), "sk", "has no model 'nobody'"),
        (("--config.cloud.prices.input=-1.0",), "sk", "config.cloud.prices.input is -1.0"),
        (("--config.cloud.base_url=http://127.0.0.1:9/v1",), "sk", "does not answer"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_compiled(tiny, tmp_path, flags, key, message):
    with running(FakeCloud(solve, models=["fake"])) as url:
        said = launch(tiny, tmp_path / "run", url, *flags, key=key)
    assert said.returncode == 2 and message in said.stderr
    assert said.stderr.startswith("Error: ") and len(said.stderr.splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()
