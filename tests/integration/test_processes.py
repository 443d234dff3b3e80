"""Several processes on loopback are one job: same tokens, same judgements, one cloud, one stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.fake_cloud import solve
from offload_jax.cloud.fake import FakeCloud, running
from offload_jax.evaluation.records import read_records

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(count, devices, command, *others):
    """The processes of a job with `devices` CPU devices in all; {} in a command is the place.

    `others`: the commands of processes 1, 2, …; without them all have the same.
    """
    commands = [command, *others] if others else [command] * count
    flags = os.environ["QUICK_XLA_FLAGS"]
    flags += f" --xla_force_host_platform_device_count={devices // count}"
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "OPENAI_API_KEY": "sk-test"}
    port = free_port()
    return [
        subprocess.Popen(
            [
                part.replace("{}", f"{i}/{count}@127.0.0.1:{port}" if count > 1 else "")
                for part in each
            ],
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i, each in enumerate(commands)
    ]


def ended(processes, timeout=240):
    """(exit status, everything printed) of every process."""
    printed = [process.communicate(timeout=timeout)[0] for process in processes]
    return [(p.returncode, text) for p, text in zip(processes, printed, strict=True)]


def launching(workdir, *flags):
    launch = [sys.executable, "-m", "experiments.launch", "--processes={}"]
    return [*launch, f"--workdir={workdir}", *flags]


def rows(workdir):
    """metrics.jsonl without what a clock or a compiler has put there."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if "seconds" not in k and k != "compilations"}
        for line in lines
    ]


@pytest.fixture(scope="module")
def flags(tiny):
    return ["--config=configs/countdown_cpu.py:smoke", *tiny.tiny_flags()]


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ((status, printed),) = ended(start(1, 4, launching(workdir, *flags)))
    assert status == 0, printed
    return workdir


def assert_same_run(one, other):
    """The same responses and judgements; sums over devices may be taken in another order."""
    for policy in ("start", "gapg"):
        pairs = zip(
            *(read_records(run / "records" / f"{policy}.jsonl") for run in (one, other)),
            strict=True,
        )
        for a, b in pairs:
            assert a.response_tokens == b.response_tokens
            assert (a.device_correct, a.called, a.cloud_correct) == (
                b.device_correct,
                b.called,
                b.cloud_correct,
            )
    assert len(rows(one)) == len(rows(other)) > 0
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"stage"}:
            np.testing.assert_allclose(
                np.array(a[name], float), np.array(b[name], float), rtol=1e-4, atol=1e-5
            )


def test_two_processes_do_what_one_does_and_stop_and_go_on_together(alone, flags, tmp_path):
    job = start(2, 4, launching(tmp_path / "run", *flags))
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "checkpoints" / "start" / "1").exists():
        assert job[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    job[1].send_signal(signal.SIGTERM)  # a preemption tells one machine
    stopped = ended(job)
    assert [status for status, _ in stopped] == [128 + signal.SIGTERM] * 2, stopped
    assert all("Stopped by SIGTERM after step" in printed for _, printed in stopped)
    for status, printed in ended(start(2, 4, launching(tmp_path / "run", *flags))):
        assert status == 0, printed
    assert_same_run(alone, tmp_path / "run")


@pytest.mark.slow  # the service takes its time to notice that one is gone
def test_one_that_is_killed_ends_the_job_which_goes_on_when_started_again(alone, flags, tmp_path):
    run = tmp_path / "run"
    job = start(2, 4, launching(run, *flags))
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "start" / "3").exists():
        assert job[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    job[1].kill()
    assert all(status != 0 for status, _ in ended(job))
    assert not (run / "records" / "gapg.jsonl").exists()
    for status, printed in ended(start(2, 4, launching(run, *flags))):
        assert status == 0, printed
    assert_same_run(alone, run)


@pytest.mark.slow  # that two processes do what one does is tested above
def test_four_processes_ask_the_cloud_once_per_prompt(alone, flags, tmp_path):
    fake = FakeCloud(solve, models=["fake"])
    cloud = ["--config=configs/countdown_cloud.py:smoke", *flags[1:]]
    with running(fake) as url:
        job = launching(tmp_path / "run", *cloud, f"--config.cloud.base_url={url}")
        for status, printed in ended(start(4, 4, job)):
            assert status == 0, printed
    assert fake.requests and len(fake.requests) == len(set(fake.requests))
    assert_same_tokens(alone, tmp_path / "run")


def assert_same_tokens(one, other):
    a, b = (read_records(run / "records" / "start.jsonl") for run in (one, other))
    assert [r.response_tokens for r in a] == [r.response_tokens for r in b]


def test_processes_with_different_settings_are_refused(flags, tmp_path):
    commands = [launching(tmp_path / "run", *flags, f"--config.seed={seed}") for seed in (0, 1)]
    for status, printed in ended(start(2, 2, *commands)):
        assert status == 2 and "different settings" in printed and "Traceback" not in printed


_SCRIPT = """
import sys
from offload_jax import processes
processes.join(sys.argv[1])
import jax
me = jax.process_index()
print(processes.gather(me * 10), processes.tell(lambda: {"from": me}))
print(processes.spread(lambda part: [x * x for x in part], range(7)), processes.spread(list, '5'))
assert processes.is_main() == (me == 0)
def fail():
    if me == 1:
        raise ValueError("no such file here")
    return me
try:
    processes.together(fail)
except processes.PeerError as error:
    print(error)
except ValueError as error:
    print("own", error)
print(processes.main_first(lambda: me), processes.gather(None))
"""


def test_hosts_agree_through_process_0_and_one_that_fails_stops_all():
    said = ended(start(3, 3, [sys.executable, "-c", _SCRIPT, "{}"]))
    for i, (status, printed) in enumerate(said):
        assert status == 0, printed
        lines = [line for line in printed.splitlines() if "Gloo" not in line]
        assert lines == [
            "[0, 10, 20] {'from': 0}",
            "[0, 1, 4, 9, 16, 25, 36] ['5']",
            "own no such file here"
            if i == 1
            else "Process 1 of the job stopped: no such file here",
            f"{i} [None, None, None]",
        ]
