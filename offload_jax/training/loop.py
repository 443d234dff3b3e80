"""The loop that every stage of a run shares: step, log, evaluate, checkpoint, resume."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from offload_jax.device.config import DeviceConfig
from offload_jax.learning.update import TrainState
from offload_jax.training.checkpoints import Checkpoints
from offload_jax.training.detectors import check_finite
from offload_jax.training.logging import Progress, RunLog
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
    log: RunLog,
    config: DeviceConfig,
    vocabulary: Vocabulary,
) -> TrainState:
    """Takes a stage from its latest checkpoint, or from `state`, to its end.

    A resumed stage is bitwise the uninterrupted one: everything that a step uses follows from the
    state and the step's number. Metrics after the checkpoint are dropped and written again.

    Raises:
        RunError: loss or gradient is not finite; the last checkpoint is left as it was.
    """
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state)
    start = int(state.step)
    log.rewind(stage.name, start)
    with Progress(stage.name, stage.steps, start) as progress:
        for step in range(start, stage.steps):
            began, compiled = time.perf_counter(), compilations()
            state, metrics = stage.step(state, step)
            done = step + 1
            check_finite(done, metrics, stage.rate_setting)
            metrics["seconds/step"] = time.perf_counter() - began
            metrics["compilations"] = compilations() - compiled
            at_checkpoint = done % stage.every == 0 or done == stage.steps
            if at_checkpoint and stage.evaluate:
                metrics |= stage.evaluate(state)
            log.write(done, stage.name, metrics)
            if at_checkpoint:
                checkpoints.save(state, config, vocabulary)
                if warning := stage.warn():
                    progress.say(f"Warning: {warning}.")
            progress.update(done, {name: metrics[name] for name in stage.shown})
    return state


_compilations = 0


def compilations() -> int:
    """How many programs XLA has compiled, or loaded from its cache, in this process so far."""
    return _compilations


def _count(event: str, *_, **__) -> None:
    global _compilations
    _compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)
