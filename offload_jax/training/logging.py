"""What a run leaves behind while it trains: metrics as JSON lines and TensorBoard, and progress.

A run that is killed and resumed leaves the same rows as one that was not: see `RunLog.rewind`.
"""

import math
import numbers
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import rich.console
import rich.progress

from offload_jax.evaluation.jsonl import encode, read_lines, write_lines
from offload_jax.processes import is_main

if TYPE_CHECKING:
    from offload_jax.training.tensorboard import Board


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, oldest first; a last line cut short by a kill is left out.

    Raises ValueError naming the file and the line that is not JSON, or without step and stage.
    """
    rows = read_lines(path, drop_partial=True)
    for number, row in enumerate(rows, 1):
        if type(row.get("step")) is not int or not isinstance(row.get("stage"), str):
            raise ValueError(f"{path}, line {number}, is not a stage's step.")
    return rows


def _number(name: str, value: Any) -> float | int | None:
    """A Python number from whatever scalar it came as: numpy, jax or Python."""
    if value is None:
        return None
    if getattr(value, "shape", None) == () and not isinstance(value, np.generic):
        value = np.asarray(value)[()]
    if isinstance(value, bool | np.bool_ | numbers.Integral):
        return int(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"metric {name} must be one number, not {value!r:.80}") from None


class RunLog:
    """The metrics of a run, flushed row by row.

    Rows go to `workdir/metrics.jsonl` as {"step", "stage", name: number, ...} and to
    `workdir/tensorboard/<stage>` as scalars `stage/name`. JSON knows no NaN: a number that is not
    finite is null there (its name is kept) and itself in TensorBoard.

    Of several processes only process 0 has one, see `open_log`. Close it, or use `with`.
    """

    def __init__(self, workdir: str | os.PathLike):
        self._workdir = Path(workdir)
        self._path = self._workdir / "metrics.jsonl"
        self._boards: dict[str, Board] = {}
        self._workdir.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            # A killed run's half line would swallow the next row.
            write_lines(self._path, read_metrics(self._path))
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, stage: str, metrics: Mapping[str, Any]) -> None:
        """Appends one row.

        Args:
            step: steps of this stage done so far.
            stage: part of the run, e.g. "start" or "gapg"; a plain file name.
            metrics: scalars by name; None is a metric that has no meaning at this step.

        Raises ValueError at a metric that is not a scalar, or named "step" or "stage".
        """
        values = {name: _number(name, value) for name, value in metrics.items()}
        for reserved in values.keys() & {"step", "stage"}:
            raise ValueError(f"metric {reserved} must have another name: rows use that one")
        finite = {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
        self._file.write(encode({"step": int(step), "stage": stage, **finite}))
        self._file.flush()
        scalars = {f"{stage}/{name}": x for name, x in values.items() if x is not None}
        if scalars:
            self._board(stage).scalars(int(step), scalars)

    def rewind(self, stage: str, step: int) -> None:
        """Forgets rows of `stage` later than `step`, as a resume from that step's checkpoint must.

        Rows are dropped from metrics.jsonl. TensorBoard's files only grow; there the restart is
        marked, and TensorBoard itself then hides what came later.
        """
        self._file.close()
        rows = read_metrics(self._path)
        kept = [row for row in rows if row.get("stage") != stage or row.get("step", 0) <= step]
        if len(kept) < len(rows):
            write_lines(self._path, kept)
        self._file = self._path.open("a", encoding="utf-8")
        if any(self._board_folder(stage).glob("*tfevents*")):
            self._board(stage).restart(step + 1)

    def close(self) -> None:
        """Closes the files; the log cannot be written to any more."""
        self._file.close()
        for board in self._boards.values():
            board.close()
        self._boards.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _board_folder(self, stage: str) -> Path:
        # One folder per stage: a restart hides later steps in its whole folder, and another
        # stage's steps are counted on their own.
        return self._workdir / "tensorboard" / stage

    def _board(self, stage: str) -> "Board":
        from offload_jax.training.tensorboard import Board  # see there

        if stage not in self._boards:
            self._boards[stage] = Board(self._board_folder(stage))
        return self._boards[stage]


class NoLog:
    """The log of a process that leaves nothing behind: one of several, but not process 0."""

    def write(self, step: int, stage: str, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def rewind(self, stage: str, step: int) -> None:
        """Nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


Log = RunLog | NoLog


def open_log(workdir: str | os.PathLike) -> Log:
    """The log of a run: process 0 writes it."""
    return RunLog(workdir) if is_main() else NoLog()


class Progress:
    """One stage's progress on stderr: a bar on a terminal, else a line every tenth of the way.

    Shows step/total, step time (median of the last 20, so that a compilation or an evaluation
    does not show), the time left at that rate, and a few numbers such as reward and call ratio.
    """

    def __init__(self, stage: str, total: int, start: int = 0, stream: TextIO | None = None):
        """Opens the bar.

        Args:
            stage: name shown in front.
            total: number of steps of the stage.
            start: steps done already, where the stage is resumed.
            stream: where to write; stderr by default.
        """
        self._stage, self._total, self._step = stage, total, start
        self._stream = stream or sys.stderr
        self._seconds: deque[float] = deque(maxlen=20)
        self._last = time.monotonic()
        self._bar = None
        if self._stream.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("[bold]{task.description}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[numbers]}"),
                console=rich.console.Console(file=self._stream),
            )
            self._task = self._bar.add_task(stage, total=total, completed=start, numbers="")
            self._bar.start()
        elif start < total:
            self.say(f"{stage}: {total - start} steps to do")

    def update(self, step: int, shown: Mapping[str, float] | None = None) -> None:
        """Tells that `step` steps of the stage are done; `shown` are the numbers to display."""
        now = time.monotonic()
        if step > self._step:
            self._seconds.append((now - self._last) / (step - self._step))
        self._last = now
        text = self._numbers(step, shown or {})
        if self._bar:
            self._bar.update(self._task, completed=step, numbers=text)
        elif step * 10 // self._total > self._step * 10 // self._total:
            self.say(f"{self._stage}: {step}/{self._total}  {text}")
        self._step = step

    def say(self, sentence: str) -> None:
        """Prints a sentence without breaking the bar."""
        if self._bar:
            self._bar.console.print(sentence, markup=False, highlight=False)
        else:
            print(sentence, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar:
            self._bar.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _numbers(self, step: int, shown: Mapping[str, float]) -> str:
        pace = statistics.median(self._seconds) if self._seconds else 0.0
        parts = [f"{pace:.2f} s/step"]
        parts += [f"{name.replace('_', ' ')} {float(value):.3f}" for name, value in shown.items()]
        parts.append(f"{_duration(pace * (self._total - step))} left")
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
