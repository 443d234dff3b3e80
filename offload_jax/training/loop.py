"""The loop that every stage of a run shares: step, log, evaluate, checkpoint, resume."""

import dataclasses
import io
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from offload_jax.device.config import DeviceConfig
from offload_jax.learning.update import TrainState
from offload_jax.processes import gather, is_main
from offload_jax.training.checkpoints import Checkpoints
from offload_jax.training.detectors import check_finite
from offload_jax.training.logging import Log, Progress
from offload_jax.vocabulary import Vocabulary

Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of a run."""

    name: str
    steps: int
    every: int  # steps between checkpoints, and between evaluations where there are any
    step: Callable[[TrainState, int], tuple[TrainState, Metrics]]  # steps count from 0
    rate_setting: str  # config path of the learning rate, for the message when numbers diverge
    evaluate: Callable[[TrainState], Metrics] | None = None
    shown: tuple[str, ...] = ()  # metrics in the progress bar
    warn: Callable[[], str | None] = lambda: None  # asked after each evaluation


def run_stage(
    stage: Stage,
    state: TrainState,
    checkpoints: Checkpoints,
    log: Log,
    config: DeviceConfig,
    vocabulary: Vocabulary,
) -> TrainState:
    """Takes a stage from its latest checkpoint, or from `state`, to its end.

    A resumed stage is bitwise the uninterrupted one: everything that a step uses follows from the
    state and the step's number. Metrics after the checkpoint are dropped and written again.

    SIGTERM to any process, the notice before a preemption, ends it after the current step, with a
    checkpoint.

    Raises:
        RunError: loss or gradient is not finite; the last checkpoint is left as it was.
        PreemptedError: SIGTERM came.
    """
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state)
    start = int(state.step)
    log.rewind(stage.name, start)
    with _progress(stage, start) as progress, _terminations() as terminated:
        for step in range(start, stage.steps):
            began, compiled = time.perf_counter(), compilations()
            state, metrics = stage.step(state, step)
            done = step + 1
            check_finite(done, metrics, stage.rate_setting)
            metrics["seconds/step"] = time.perf_counter() - began
            metrics["compilations"] = compilations() - compiled
            at_checkpoint = done % stage.every == 0 or done == stage.steps
            stopping = any(gather(bool(terminated)))
            if at_checkpoint and stage.evaluate:
                metrics |= stage.evaluate(state)
            log.write(done, stage.name, metrics)
            if at_checkpoint or stopping:
                checkpoints.save(state, config, vocabulary)
            if stopping:
                raise PreemptedError(
                    f"Stopped by SIGTERM after step {done} of {stage.name}, which is saved: the"
                    " same command goes on from there."
                )
            if at_checkpoint and is_main() and (warning := stage.warn()):
                progress.say(f"Warning: {warning}.")
            progress.update(done, {name: metrics[name] for name in stage.shown})
    return state


def _progress(stage: Stage, start: int) -> Progress:
    nowhere = None if is_main() else io.StringIO()
    return Progress(stage.name, stage.steps, start, nowhere)


class PreemptedError(Exception):
    """The machine is wanted back; the run is saved."""


@contextmanager
def _terminations() -> Iterator[list[int]]:
    """A list that SIGTERM makes non-empty. Elsewhere than in the main thread it stays empty."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


_compilations = 0


def compilations() -> int:
    """How many programs XLA has compiled, or loaded from its cache, in this process so far."""
    return _compilations


def _count(event: str, *_, **__) -> None:
    global _compilations
    _compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)
