"""From a checkpoint and a config to the service that answers with them."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax

from offload_jax.cloud import CloudConfig, make_cloud
from offload_jax.cloud.ledger import account
from offload_jax.cloud.openai import OpenAICloud
from offload_jax.cloud.oracle import OracleConfig
from offload_jax.cloud.protocol import Cloud
from offload_jax.device.config import DeviceConfig, Dtype
from offload_jax.device.params import Params
from offload_jax.sampling.rollout import SamplingConfig
from offload_jax.sampling.sampler import Sampler
from offload_jax.serving.app import Limits, Service
from offload_jax.serving.attempt import Engine
from offload_jax.serving.pair import Gate, Pair
from offload_jax.settings import parse, require
from offload_jax.sharding import MeshConfig, make_mesh, prepare_devices
from offload_jax.tasks import make_task
from offload_jax.tasks.task import Prompt, Task
from offload_jax.training.checkpoints import read_policy
from offload_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class CountdownAsked:
    """Countdown as users ask it: the numbers and targets that the policy was trained on."""

    name: Literal["countdown"] = "countdown"
    numbers: tuple = (1, 25)
    targets: tuple = (10, 99)


@dataclasses.dataclass(frozen=True)
class ArithmeticAsked:
    """Arithmetic as users ask it."""

    name: Literal["arithmetic"] = "arithmetic"


@dataclasses.dataclass(frozen=True)
class MathAsked:
    """Mathematics as users ask it; `help`: the system prompt allows a call."""

    name: Literal["math"] = "math"
    help: bool = True


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long prompts and responses may be, in tokens; temperature and seed are the client's."""

    prompt_tokens: int
    response_tokens: int
    compute_dtype: Dtype | None = None  # of weights and activations; None: the checkpoint's

    def sampling(self) -> SamplingConfig:
        """For the sampler; one response to each prompt. Raises ValueError."""
        return SamplingConfig(1, temperature=0.0, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Serving:
    """How a checkpoint is served.

    Attributes:
        sampling: longest prompts and responses.
        task: what is asked.
        cloud: answers the calls.
        model: the name under which the pair is served; None: that of the checkpoint's folder.
        slots: attempts of the device LLM at once.
        queue: questions that wait for one.
        threshold: the dial: P(call) above it is a call; None: the device LLM decides.
        threshold_file: from `experiments.calibrate`, in place of `threshold`.
        patience: seconds that the cloud is waited for, whatever its own limits.
        limits: of clients.
        dtype: of a Hugging Face folder's or a GGUF file's weights, and of activations.
        mesh: what the weights are split over.
    """

    sampling: Lengths
    task: CountdownAsked | ArithmeticAsked | MathAsked = dataclasses.field(
        default_factory=CountdownAsked
    )
    cloud: CloudConfig = dataclasses.field(default_factory=OracleConfig)
    model: str | None = None
    slots: int = 8
    queue: int = 64
    threshold: float | None = None
    threshold_file: str | None = None
    patience: float = 120.0
    limits: Limits = dataclasses.field(default_factory=Limits)
    dtype: Dtype = "float32"
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        self.sampling.sampling()  # raises where a length is none
        for name in ("slots", "queue"):
            value = getattr(self, name)
            require(value >= 1, f"config.{name} is {value}; it must be at least 1.")
        require(0 < self.patience < 1e6, f"config.patience is {self.patience}; it must be seconds.")
        require(
            self.threshold is None or math.isfinite(self.threshold),
            f"config.threshold is {self.threshold}; it must be a number or None.",
        )
        require(
            self.threshold is None or self.threshold_file is None,
            "config.threshold and config.threshold_file are both given; one of them is enough.",
        )
        require(
            self.task.name == "countdown" or self.cloud.kind != "oracle",
            f"config.cloud.kind is 'oracle', which has no solver for what users ask of"
            f" {self.task.name}: give openai, device or replay.",
        )


def from_config(config: Mapping[str, Any]) -> Serving:
    """The settings that a config describes. Raises ValueError."""
    return parse(Serving, config)


@contextmanager
def open_service(
    settings: Serving,
    checkpoint: str | Path,
    workdir: str | Path,
    make_engine: Callable[[Params, Sampler, int, int], Engine],
) -> Iterator[Service]:
    """The service while it runs; its engine is warm.

    Args:
        settings: how.
        checkpoint: a stage's checkpoints, a Hugging Face folder or a GGUF file.
        workdir: where the cloud's ledger lies, and whose budget is drawn on.
        make_engine: from weights, sampler, slots and length of the queue to an engine, which
            compiles when it is started.

    Raises:
        ValueError: something does not fit.
    """
    threshold = read_threshold(settings)
    prepare_devices(settings.mesh)
    mesh = make_mesh(settings.mesh)
    workdir = Path(workdir).resolve()
    with jax.set_mesh(mesh):
        params, device, vocabulary = read_policy(checkpoint, mesh, settings.dtype)
        task = served_task(settings, vocabulary, workdir)
        sampling = settings.sampling.sampling()
        _check_lengths(sampling, device)
        cloud = make_cloud(settings.cloud, task, workdir, mesh)
        gate = Gate(cloud, getattr(settings.cloud, "concurrency", 1), settings.patience)
        try:
            sampler = Sampler(task, device, sampling, mesh)
            engine = make_engine(params, sampler, settings.slots, settings.queue)
            engine.start()
            try:
                yield Service(
                    model=settings.model or Path(checkpoint).resolve().name,
                    engine=engine,
                    pair=Pair(engine, gate, task.parse, threshold),
                    read=lambda question: read_prompt(task, question),
                    spent=lambda: _spent(cloud),
                    limits=settings.limits,
                )
            finally:
                engine.close()
        finally:
            gate.close()


def served_task(settings: Serving, vocabulary: Vocabulary, workdir: Path) -> Task:
    """The task that users ask, without data. Raises ValueError where it does not fit."""
    values = dataclasses.asdict(settings.task)
    name = values.pop("name")
    chat = vocabulary.chat_template is not None
    if name == "math":
        require(chat, "config.task.name is 'math', but the checkpoint has no chat template.")
        values |= {"files": "", "train": None, "test": None}
    elif name == "arithmetic":
        values |= {"train": 1, "validation": 1, "test": 1, "seed": 0}
    task = make_task(name, workdir / "data", vocabulary if chat else None, **values)
    require(
        chat or task.vocabulary.to_json() == vocabulary.to_json(),
        f"The checkpoint has neither a chat template nor the vocabulary of the task {name!r}.",
    )
    return task


def read_prompt(task: Task, question: str) -> Prompt:
    """A user's question as a prompt. Raises ValueError where it cannot be one.

    A question that holds a control token of the device LLM could end its own turn in the
    template, and speak as the system.
    """
    for token in task.vocabulary.tokenizer.get_added_tokens_decoder().values():
        require(
            not token.special or token.content not in question,
            f"The question holds {token.content!r}, which is a control token of the device LLM.",
        )
    return task.asked(question)


def read_threshold(settings: Serving) -> float | None:
    """The dial, from the config or from a file. Raises ValueError."""
    if settings.threshold_file is None:
        return settings.threshold
    path = Path(settings.threshold_file)
    try:
        threshold = json.loads(path.read_text(encoding="utf-8"))["threshold"]
        good = type(threshold) in (int, float) and math.isfinite(threshold)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        good = False
    require(good, f"config.threshold_file: {path} is no file of experiments.calibrate.")
    return float(threshold)


def _check_lengths(sampling: SamplingConfig, device: DeviceConfig) -> None:
    tokens, context = sampling.prompt_tokens + sampling.response_tokens, device.context
    require(
        context is None or tokens <= context,
        f"config.sampling.prompt_tokens + response_tokens is {tokens}; the device LLM's context"
        f" has {context}.",
    )


def _spent(cloud: Cloud) -> dict[str, Any] | None:
    """What the workdir has spent over all its runs, and its budget; None without a ledger."""
    if not isinstance(cloud, OpenAICloud):
        return None
    ledger = cloud.ledger
    rows = [row for row in account(ledger.path) if row["run"] == ledger.run]
    return {
        "attempts": sum(row["attempts"] for row in rows),
        "tokens": sum(row["prompt_tokens"] + row["tokens"] for row in rows),
        "dollars": sum(row["dollars"] or 0.0 for row in rows),
        "budget": dataclasses.asdict(ledger.budget),
    }
