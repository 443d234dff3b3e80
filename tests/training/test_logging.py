import io
import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from offload_jax.training import logging
from offload_jax.training.logging import Progress, RunLog, read_metrics


def raw_events(folder):
    """All events of TensorBoard's files, oldest file first: length, crc, event, crc."""
    for path in sorted(folder.glob("*tfevents*"), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def board(workdir, stage):
    """What TensorBoard shows of a stage: a restart hides what was at its step or later."""
    shown = []
    for event in raw_events(workdir / "tensorboard" / stage):
        if event.session_log.status == SessionLog.START:
            shown = [point for point in shown if point[0] < event.step]
        shown += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return shown


def kill(log):
    """The end of a process that is killed: nothing is closed, a row is half written."""
    with log._path.open("a") as file:
        file.write('{"step": 99, "stage": "gapg", "rew')


def test_a_row_is_on_the_disk_as_soon_as_it_is_written(tmp_path):
    log = RunLog(tmp_path / "run")
    log.write(1, "gapg", {"reward": np.float32(0.5), "d1": jnp.int32(12), "loss": 2})
    row = {"step": 1, "stage": "gapg", "reward": 0.5, "d1": 12, "loss": 2}
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == [row]
    expected = [(1, "gapg/reward", 0.5), (1, "gapg/d1", 12.0), (1, "gapg/loss", 2.0)]
    assert board(tmp_path / "run", "gapg") == expected
    log.close()


def test_what_is_not_finite_is_null_under_its_own_name_and_the_file_stays_json(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(1, "gapg", {"loss": math.nan, "norm": jnp.inf, "conditional": None})
    text = (tmp_path / "metrics.jsonl").read_text()
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert parsed == {"step": 1, "stage": "gapg", "loss": None, "norm": None, "conditional": None}
    shown = {tag: value for _, tag, value in board(tmp_path, "gapg")}
    assert math.isnan(shown["gapg/loss"])
    assert shown["gapg/norm"] == math.inf
    assert "gapg/conditional" not in shown


def test_what_is_no_scalar_is_refused_by_name(tmp_path):
    with RunLog(tmp_path) as log:
        for bad in (np.zeros(2), "high", [1.0]):
            with pytest.raises(ValueError, match="metric reward"):
                log.write(1, "gapg", {"reward": bad})
        with pytest.raises(ValueError, match="metric step"):
            log.write(1, "gapg", {"step": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def write_steps(log, stage, steps):
    for step in steps:
        log.write(step, stage, {"reward": step / 10})


def test_a_resumed_run_leaves_the_rows_of_an_uninterrupted_one(tmp_path):
    with RunLog(tmp_path / "whole") as log:
        write_steps(log, "supervised", range(1, 9))
        write_steps(log, "gapg", range(1, 7))

    killed = RunLog(tmp_path / "killed")
    write_steps(killed, "supervised", range(1, 9))
    write_steps(killed, "gapg", range(1, 6))
    kill(killed)
    with RunLog(tmp_path / "killed") as log:  # the last checkpoint is of step 3
        log.rewind("gapg", 3)
        write_steps(log, "gapg", range(4, 7))

    whole, resumed = (tmp_path / run / "metrics.jsonl" for run in ("whole", "killed"))
    assert resumed.read_text() == whole.read_text()
    for stage in ("supervised", "gapg"):
        assert board(tmp_path / "killed", stage) == board(tmp_path / "whole", stage)
    files = [p.name for p in (tmp_path / "killed").iterdir()]
    assert sorted(files) == ["metrics.jsonl", "tensorboard"]


def test_two_kills_and_resumes_leave_no_duplicates_either(tmp_path):
    for start, stop in ((0, 5), (2, 6), (4, 8)):
        log = RunLog(tmp_path)
        log.rewind("gapg", start)
        write_steps(log, "gapg", range(start + 1, stop + 1))
        kill(log)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [*range(1, 9)]
    assert [step for step, _, _ in board(tmp_path, "gapg")] == [*range(1, 9)]


def test_a_half_row_does_not_swallow_the_next_one(tmp_path):
    kill(RunLog(tmp_path))
    with RunLog(tmp_path) as log:
        log.write(1, "gapg", {"reward": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_a_whole_row_without_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "gapg"}')
    with RunLog(tmp_path) as log:
        log.write(2, "gapg", {})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_rewinding_what_never_ran_changes_nothing(tmp_path):
    with RunLog(tmp_path) as log:
        write_steps(log, "supervised", [1, 2])
        log.rewind("gapg", 0)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert not (tmp_path / "tensorboard" / "gapg").exists()


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(logging.time, "monotonic", lambda: self.now)


def test_without_a_terminal_progress_is_a_line_every_tenth(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress("gapg", total=120, stream=stream) as progress:
        for step in range(1, 121):
            clock.now += 60.0 if step == 1 else 2.0  # compilation first
            progress.update(step, {"reward": 0.25, "call_ratio": 0.5})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "gapg: 120 steps to do"
    assert lines[1] == "gapg: 12/120  2.00 s/step  reward 0.250  call ratio 0.500  3:36 left"
    assert [line.split()[1] for line in lines[1:]] == [f"{12 * i}/120" for i in range(1, 11)]
    assert lines[-1].endswith("0:00 left")


def test_a_resumed_stage_goes_on_counting(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress("gapg", total=10, start=8, stream=stream) as progress:
        for step in (9, 10):
            clock.now += 1.0
            progress.update(step)
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == [
        "gapg: 2 steps to do",
        "gapg: 9/10",
        "gapg: 10/10",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_progress_is_a_bar_with_the_same_numbers(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    clock, stream = Clock(monkeypatch), Terminal()
    with Progress("gapg", total=4000, stream=stream) as progress:
        clock.now += 2.0
        progress.update(1, {"reward": 0.25, "call_ratio": 0.5})
        progress.say("a [warning] above the bar")
    text = stream.getvalue()
    assert "2.00 s/step  reward 0.250  call ratio 0.500  2:13:18 left" in text
    assert "1/4000" in text
    assert "a [warning] above the bar" in text


@pytest.mark.parametrize("row", ['{"step": 1}', '{"stage": "gapg"}', '{"step": "1", "stage": "a"}'])
def test_a_row_that_is_no_stages_step_is_refused_by_its_line(tmp_path, row):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "stage": "gapg"}\n' + row + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2, is not a stage's step"):
        read_metrics(path)
