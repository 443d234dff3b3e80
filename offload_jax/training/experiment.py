"""The settings of an experiment, checked before anything expensive starts."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from offload_jax.cloud import CloudConfig
from offload_jax.device.config import DeviceConfig
from offload_jax.evaluation.usage import UsageConfig
from offload_jax.learning.objective import ObjectiveConfig
from offload_jax.learning.optimizer import OptimizerConfig
from offload_jax.learning.prompt_filter import FilterConfig
from offload_jax.learning.reward import RewardConfig
from offload_jax.pretrained.checkpoint import Pretrained
from offload_jax.sampling.rollout import SamplingConfig
from offload_jax.settings import check_program, parse, require
from offload_jax.sharding import MeshConfig
from offload_jax.tasks.arithmetic.problems import ProblemConfig
from offload_jax.tasks.arithmetic.task import ExampleConfig
from offload_jax.tasks.countdown.traces import TraceConfig, fewest_tokens
from offload_jax.tasks.math.config import MathConfig, SolutionConfig
from offload_jax.tasks.recall import LessonConfig, RecallConfig


@dataclasses.dataclass(frozen=True)
class CountdownSettings:
    """The Countdown problems (see `offload_jax.tasks.countdown.builder.CountdownConfig`)."""

    name: Literal["countdown"]
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


@dataclasses.dataclass(frozen=True)
class ArithmeticSettings(ProblemConfig):
    """The arithmetic problems, of a difficulty and in so many prompts per split."""

    name: Literal["arithmetic"] = "arithmetic"
    train: int = 2000
    validation: int = 200
    test: int = 500
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class MathSettings(MathConfig):
    """Published mathematical problems (see docs/math.md)."""

    name: Literal["math"] = "math"

    def __post_init__(self):
        super().__post_init__()
        for name in ("train", "test"):
            value = getattr(self, name)
            require(value is not None, f"config.task.{name} is None; name a data set.")


@dataclasses.dataclass(frozen=True)
class RecallSettings(RecallConfig):
    """Facts, in so many prompts per split, and how many of them the device is taught."""

    name: Literal["recall"] = "recall"
    train: int = 4000
    validation: int = 500
    test: int = 2000
    seed: int = 0


TaskSettings = CountdownSettings | ArithmeticSettings | MathSettings | RecallSettings
# What the supervised start imitates, by task.
Traces = TraceConfig | ExampleConfig | SolutionConfig | LessonConfig


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """The shape of an update.

    What fits at once is `micro_prompts` prompts with `micro_group` responses each. A smaller
    `micro_group` keeps responses of like length together, so that with several `length_buckets`
    short ones are not computed as long ones; prompts are computed once per part of their group.
    """

    prompts: int  # P, per step
    micro_prompts: int  # prompts computed at once
    micro_group: int | None = None  # and responses to each of them; None: the whole group
    length_buckets: int = 4  # response lengths that the update is compiled for

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(value is None or value >= 1, f"{field.name} must be at least 1.")
        require(
            self.prompts % self.micro_prompts == 0,
            f"prompts ({self.prompts}) must be a multiple of micro_prompts ({self.micro_prompts}).",
        )

    def parts(self, group: int, path: str) -> int:
        """Parts that a group of responses is computed in.

        Raises:
            ValueError: it does not divide; the message names `path`, where these settings are.
        """
        size = self.micro_group or group
        require(
            group % size == 0,
            f"{path}.micro_group ({size}) does not divide the group of {group} responses.",
        )
        return group // size


@dataclasses.dataclass(frozen=True)
class StartSettings:
    """The supervised start of the device LLM on examples that the task generates."""

    steps: int  # a pretrained device LLM may do without, 0
    batch: BatchSettings
    optimizer: OptimizerConfig
    traces: Traces  # what is imitated first
    late_steps: int = 0  # the last steps imitate `late_traces` instead
    late_traces: Traces | None = None

    def __post_init__(self):
        require(
            0 <= self.late_steps <= self.steps,
            f"config.start.late_steps ({self.late_steps}) must be between 0 and"
            f" config.start.steps ({self.steps}).",
        )
        require(
            self.late_steps == 0 or self.late_traces is not None,
            f"config.start.late_traces is missing; config.start.late_steps is {self.late_steps}.",
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
    sampling_parts: int = 1  # a batch is sampled in so many, the cloud answering meanwhile
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
    cloud: CloudConfig
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
            self._check_traces(name, getattr(self.start, name))
        self._check_device()
        for stage, group in (("start", 1), ("learning", self.sampling.group)):
            fewest = 0 if stage == "start" and self.device.pretrained else 1
            settings = getattr(self, stage)
            require(settings.steps >= fewest, f"config.{stage}.steps must be at least {fewest}.")
            settings.batch.parts(group, f"config.{stage}.batch")
        evaluation = self.evaluation
        for name in ("every", "batch"):
            value = getattr(evaluation, name)
            require(value >= 1, f"config.evaluation.{name} must be at least 1.")
        parts, prompts = self.learning.sampling_parts, self.learning.batch.prompts
        require(
            parts >= 1 and prompts % parts == 0,
            f"config.learning.sampling_parts is {parts}; it must divide"
            f" config.learning.batch.prompts ({prompts}).",
        )
        require(
            parts == 1 or self.cloud.kind != "device",
            f"config.learning.sampling_parts is {parts}; it must be 1 with a cloud of the kind"
            " 'device', which computes where the sampler does.",
        )
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
            wanted, there = getattr(evaluation, f"{split}_prompts"), size(self.task, split)
            require(
                wanted >= 1 and (there is None or wanted <= there),
                f"config.evaluation.{split}_prompts is {wanted}; config.task.{split} has {there}.",
            )

    def _check_traces(self, name: str, traces: Traces | None) -> None:
        if traces is None:
            return
        require(
            traces.kind == self.task.name,
            f"config.start.{name}.kind is {traces.kind!r}, but the task is {self.task.name!r}.",
        )
        if isinstance(traces, TraceConfig):
            tokens = traces.max_tokens
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

    def _check_device(self) -> None:
        pretrained, task = self.device.pretrained, self.task.name
        require(
            pretrained is not None or not isinstance(self.task, MathSettings),
            f"config.device.pretrained is missing: the task {task!r} is asked in the vocabulary of"
            " a pretrained device LLM.",
        )
        require(
            pretrained is not None or getattr(self.task, "stories", 0) == 0,
            "config.task.stories must be 0 without config.device.pretrained: a device LLM that is"
            " trained from nothing is asked chains of numbers alone.",
        )
        tokens = self.sampling.prompt_tokens + self.sampling.response_tokens
        context = self.device.context
        require(
            context is None or tokens <= context,
            f"config.sampling.prompt_tokens + response_tokens is {tokens}; the device LLM's context"
            f" has {context}.",
        )


def from_config(config: Mapping[str, Any]) -> Experiment:
    """The experiment that an ml_collections config describes.

    The shape of a pretrained device LLM is read from its checkpoint.

    Raises:
        ValueError: an unknown key or an impossible value, named by its path, or a checkpoint that
            is missing or not implemented.
    """
    config = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    check_program(config, "experiments.launch")
    device = config.get("device")
    if isinstance(device, Mapping) and device.get("pretrained") is not None:
        path = device["pretrained"]
        require(isinstance(path, str), f"config.device.pretrained is {path!r}; it must be a path.")
        path = str(Path(path).resolve())  # adapters' checkpoints find it from any folder
        shape = Pretrained(path).shape()
        for name, value in shape.items():
            own = device.get(name, value)
            require(
                own == value,
                f"config.device.{name} is {own!r}, but {path} has {value!r}: leave it out.",
            )
        config["device"] = {**shape, **device, "pretrained": path}
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
        "config.learning.batch.prompts / sampling_parts": experiment.learning.batch.prompts
        // experiment.learning.sampling_parts,
    }
    for name, size in sizes.items():
        require(
            size % shards == 0,
            f"{name} is {size}, which does not divide over the {shards} shards of"
            " config.mesh (data x fsdp).",
        )


def size(task: TaskSettings, split: str) -> int | None:
    """How many prompts a split has; None where only its file tells."""
    found = getattr(task, split)
    return found if isinstance(found, int) else None
