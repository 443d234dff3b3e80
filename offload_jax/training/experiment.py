"""The settings of an experiment, checked before anything expensive starts."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from offload_jax.device.config import DeviceConfig
from offload_jax.evaluation.usage import UsageConfig
from offload_jax.learning.objective import ObjectiveConfig
from offload_jax.learning.optimizer import OptimizerConfig
from offload_jax.learning.prompt_filter import FilterConfig
from offload_jax.learning.reward import RewardConfig
from offload_jax.sampling.rollout import SamplingConfig
from offload_jax.settings import parse, require
from offload_jax.sharding import MeshConfig
from offload_jax.tasks.countdown.traces import TraceConfig, fewest_tokens


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """The Countdown problems (see `offload_jax.tasks.countdown.builder.CountdownConfig`)."""

    name: Literal["countdown"] = "countdown"
    train: int = 8000
    validation: int = 500
    test: int = 2000
    four: float = 0.3
    numbers: tuple = (1, 25)
    targets: tuple = (10, 99)
    seed: int = 0

    def __post_init__(self):
        for name in ("numbers", "targets"):
            value = getattr(self, name)
            require(
                len(value) == 2 and all(type(end) is int for end in value),
                f"config.task.{name} is {value}; it must be a pair of integers, (low, high).",
            )

    def fields(self) -> dict[str, Any]:
        """All but the name."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "name"}


@dataclasses.dataclass(frozen=True)
class CloudSettings:
    """Who answers a call."""

    kind: Literal["oracle"] = "oracle"
    accuracy: float = 0.945  # of the oracle; the paper's cloud on Countdown: 94.6 %
    seed: int = 0

    def __post_init__(self):
        require(0 <= self.accuracy <= 1, "config.cloud.accuracy must be between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """The shape of an update."""

    prompts: int  # P, per step
    micro_prompts: int  # prompts computed at once
    length_buckets: int = 4  # response lengths that the update is compiled for


@dataclasses.dataclass(frozen=True)
class StartSettings:
    """The supervised start of the device LLM on search traces."""

    steps: int
    batch: BatchSettings
    optimizer: OptimizerConfig
    traces: TraceConfig  # teach to search
    late_steps: int  # the last steps imitate `late_traces` instead, which teach when to stop
    late_traces: TraceConfig

    def __post_init__(self):
        require(
            0 <= self.late_steps <= self.steps,
            f"config.start.late_steps ({self.late_steps}) must be between 0 and"
            f" config.start.steps ({self.steps}).",
        )


@dataclasses.dataclass(frozen=True)
class LearningSettings:
    """Post-training."""

    steps: int
    batch: BatchSettings
    optimizer: OptimizerConfig
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    filter: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    importance_cap: float | None = None  # of min(trainer / sampler, cap) per token; None: off
    collapse_patience: int = 3  # evaluations in a row with all or no calls before a warning


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """When and how policies are evaluated: greedily, with capped calls."""

    every: int  # training steps between validations (and checkpoints)
    validation_prompts: int
    test_prompts: int
    cap: float = 0.3  # share of the prompts that the cloud may answer
    batch: int = 256  # prompts decoded at once
    usage: UsageConfig = dataclasses.field(default_factory=UsageConfig)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that defines a run; a workdir belongs to one of these."""

    seed: int
    task: TaskSettings
    device: DeviceConfig
    cloud: CloudSettings
    sampling: SamplingConfig
    start: StartSettings
    learning: LearningSettings
    evaluation: EvaluationSettings
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    keep_checkpoints: int = 2  # of each stage

    def __post_init__(self):
        require(0 <= self.seed < 2**31, "config.seed must be between 0 and 2**31 - 1.")
        require(self.sampling.group >= 2, "config.sampling.group must be at least 2 (GAPG's G).")
        require(self.sampling.temperature > 0, "config.sampling.temperature must be positive.")
        for name in ("traces", "late_traces"):
            tokens = getattr(self.start, name).max_tokens
            require(
                tokens <= self.sampling.response_tokens,
                f"config.start.{name}.max_tokens ({tokens}) exceeds"
                f" config.sampling.response_tokens ({self.sampling.response_tokens}).",
            )
            require(
                tokens >= fewest_tokens(4),
                f"config.start.{name}.max_tokens is {tokens}; one try of four numbers and its"
                f" ending take {fewest_tokens(4)}.",
            )
        for stage in ("start", "learning"):
            _check_batch(f"config.{stage}", getattr(self, stage))
        evaluation = self.evaluation
        for name in ("every", "batch"):
            value = getattr(evaluation, name)
            require(value >= 1, f"config.evaluation.{name} must be at least 1.")
        cap = self.learning.importance_cap
        require(cap is None or cap > 0, "config.learning.importance_cap must be positive or None.")
        require(
            cap is None or not self.learning.objective.clipped,
            f"config.learning.importance_cap is {cap}; {self.learning.objective.name} has its own"
            " importance ratio, so it must be None.",
        )
        patience = self.learning.collapse_patience
        require(patience >= 1, "config.learning.collapse_patience must be at least 1.")
        require(self.keep_checkpoints >= 1, "config.keep_checkpoints must be at least 1.")
        require(0 <= evaluation.cap <= 1, "config.evaluation.cap must be between 0 and 1.")
        for split in ("validation", "test"):
            wanted, there = getattr(evaluation, f"{split}_prompts"), getattr(self.task, split)
            require(
                1 <= wanted <= there,
                f"config.evaluation.{split}_prompts is {wanted}; config.task.{split} has {there}.",
            )


def from_config(config: Mapping[str, Any]) -> Experiment:
    """The experiment that an ml_collections config describes.

    Raises:
        ValueError: an unknown key or an impossible value, named by its path.
    """
    return parse(Experiment, config)


def check_devices(experiment: Experiment, shards: int) -> None:
    """Checks that every batch of prompts divides over the mesh.

    Args:
        experiment: the settings.
        shards: parts that prompts are split into (`offload_jax.sharding.prompt_shards`).

    Raises:
        ValueError: naming the batch that does not divide.
    """
    sizes = {
        "config.start.batch.micro_prompts": experiment.start.batch.micro_prompts,
        "config.learning.batch.micro_prompts": experiment.learning.batch.micro_prompts,
        "config.evaluation.batch": experiment.evaluation.batch,
    }
    for name, size in sizes.items():
        require(
            size % shards == 0,
            f"{name} is {size}, which does not divide over the {shards} shards of"
            " config.mesh (data x fsdp).",
        )


def _check_batch(path: str, stage: StartSettings | LearningSettings) -> None:
    batch = stage.batch
    require(stage.steps >= 1, f"{path}.steps must be at least 1.")
    for name in ("prompts", "micro_prompts", "length_buckets"):
        require(getattr(batch, name) >= 1, f"{path}.batch.{name} must be at least 1.")
    require(
        batch.prompts % batch.micro_prompts == 0,
        f"{path}.batch.prompts ({batch.prompts}) must be a multiple of"
        f" {path}.batch.micro_prompts ({batch.micro_prompts}).",
    )
