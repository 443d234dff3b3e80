"""A policy on data sets that it was not trained on: from its checkpoint alone, in parts."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import rich.console
import rich.progress

from offload_jax.cloud import CloudConfig, make_cloud
from offload_jax.cloud.oracle import OracleConfig
from offload_jax.device.config import Dtype
from offload_jax.device.params import Params
from offload_jax.evaluation.evaluate import evaluate
from offload_jax.evaluation.records import Record, read_records, write_records
from offload_jax.evaluation.table import build_tasks_table, markdown, terminal
from offload_jax.evaluation.usage import UsageConfig
from offload_jax.sampling.rollout import SamplingConfig
from offload_jax.sampling.sampler import Sampler
from offload_jax.sampling.text import encode_prompts
from offload_jax.settings import parse, require
from offload_jax.sharding import MeshConfig, make_mesh, prepare_devices, prompt_shards
from offload_jax.tasks import make_task
from offload_jax.tasks.math.config import MathConfig
from offload_jax.tasks.math.sources import find
from offload_jax.training.checkpoints import read_policy
from offload_jax.training.workdir import claim_parts


@dataclasses.dataclass(frozen=True)
class OutOfDomain:
    """How a checkpoint is evaluated.

    Attributes:
        files: the folder with the published files (see docs/math.md).
        sampling: longest prompts and responses; decoding is greedy.
        cloud: asked for the prompts that call.
        cap: share of the prompts of a task that the cloud may answer.
        batch: prompts decoded at once, after which records are written.
        limit: the first so many prompts of a task; None: all.
        seed: which calls survive the cap.
        dtype: of a Hugging Face folder's or a GGUF file's weights, and of activations.
        help: the system prompt allows a call.
        ask_all: ask the cloud for every prompt, as random offloading and the cloud alone need, not
            only for those that call.
        workers: processes that grade answers.
        seconds: of a worker's CPU time that grading one answer may take.
        usage: what seconds and dollars are reckoned with.
        mesh: what the weights and the prompts are split over.
    """

    files: str
    sampling: SamplingConfig
    cloud: CloudConfig = dataclasses.field(default_factory=OracleConfig)
    cap: float = 0.3
    batch: int = 32
    limit: int | None = None
    seed: int = 0
    dtype: Dtype = "float32"
    help: bool = True
    ask_all: bool = False
    workers: int = 2
    seconds: float = 3.0
    usage: UsageConfig = dataclasses.field(default_factory=UsageConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        require(0 <= self.cap <= 1, "config.cap must be between 0 and 1.")
        require(self.batch >= 1, "config.batch must be at least 1.")
        require(self.limit is None or self.limit >= 1, "config.limit must be at least 1 or None.")

    def task(self, name: str) -> dict[str, Any]:
        """The settings of a data set as a task without training prompts."""
        return {
            "files": self.files,
            "train": None,
            "test": name,
            "help": self.help,
            "workers": self.workers,
            "seconds": self.seconds,
        }


def evaluate_tasks(
    config: Mapping[str, Any],
    checkpoint: str,
    names: Sequence[str],
    workdir: str | Path,
    console: rich.console.Console,
) -> None:
    """Makes what is missing of the records of every task, and prints the table.

    Leaves `records/<task>.jsonl` in the workdir, `table.md`, and `config.json` with what the
    records were made with. Whatever was finished before an interruption is not done again.

    Args:
        config: the fields of `OutOfDomain`.
        checkpoint: a stage's checkpoints, a Hugging Face folder or a GGUF file.
        names: data sets.
        workdir: where records and table go.
        console: what is printed on.

    Raises:
        ValueError: a setting, file or checkpoint does not fit, or the workdir holds records of the
            same task that were made with others.
    """
    settings = parse(OutOfDomain, config)
    require(len(names) > 0, "--tasks is empty; name data sets.")
    for name in names:
        MathConfig(**settings.task(name))
        find(name, "test", settings.files)
    prepare_devices(settings.mesh)
    mesh = make_mesh(settings.mesh)
    shards = prompt_shards(mesh)
    require(
        settings.batch % shards == 0,
        f"config.batch is {settings.batch}, which does not divide over the {shards} shards of"
        " config.mesh (data x fsdp).",
    )
    workdir, policy = Path(workdir).resolve(), Path(checkpoint).name
    with jax.set_mesh(mesh):
        params, device, vocabulary = read_policy(checkpoint, mesh, settings.dtype)
        samplers = {}
        for name in names:
            task = make_task("math", workdir / "data", vocabulary, **settings.task(name))
            samplers[name] = Sampler(task, device, settings.sampling, mesh)
            _check_prompts(samplers[name], settings.limit)
        made_with = _made_with(settings, Path(checkpoint))
        claim_parts(workdir / "config.json", dict.fromkeys(names, made_with))
        records = {
            name: _records(params, sampler, settings, workdir, policy, console)
            for name, sampler in samplers.items()
        }
    table = build_tasks_table(records, settings.cap, settings.seed)
    (workdir / "table.md").write_text(markdown(table), encoding="utf-8")
    for part in terminal(table):
        console.print(part)
    console.print(f"Records and table.md are in {workdir}; the cloud: {settings.cloud.kind}.")


def _records(
    params: Params,
    sampler: Sampler,
    settings: OutOfDomain,
    workdir: Path,
    policy: str,
    console: rich.console.Console,
) -> list[Record]:
    """The records of a task: those that are there, and batch by batch the others."""
    name = sampler.task.config.test
    path = workdir / "records" / f"{name}.jsonl"
    records = read_records(path) if path.exists() else []
    prompts = sampler.task.prompts("test")[: settings.limit]
    known = {record.prompt_id for record in records}
    left = [prompt for prompt in prompts if prompt.id not in known]
    with (
        closing(make_cloud(settings.cloud, sampler.task, workdir, sampler.mesh)) as cloud,
        rich.progress.Progress(*_COLUMNS, console=console) as progress,
    ):
        bar = progress.add_task(name, total=len(prompts), completed=len(records))
        for first in range(0, len(left), settings.batch):
            records += evaluate(
                params,
                sampler,
                cloud,
                left[first : first + settings.batch],
                policy=policy,
                seed=settings.seed,
                batch=settings.batch,
                usage=settings.usage,
                ask_all=settings.ask_all,
                fallbacks=True,
            )
            write_records(path, records)
            progress.update(bar, completed=len(records))
    return records


_COLUMNS = (
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
)


def _check_prompts(sampler: Sampler, limit: int | None) -> None:
    """Raises ValueError where there is no prompt, or one that is longer than allowed."""
    task, lengths = sampler.task, sampler.sampling
    tokens, context = lengths.prompt_tokens + lengths.response_tokens, sampler.device.context
    require(
        context is None or tokens <= context,
        f"config.sampling.prompt_tokens + response_tokens is {tokens}; the device LLM's context"
        f" has {context}.",
    )
    prompts = task.prompts("test")[:limit]
    require(len(prompts) > 0, f"{task.config.test} has no problems.")
    texts = [task.device_text(prompt) for prompt in prompts]
    ids = [prompt.id for prompt in prompts]
    encode_prompts(task.vocabulary, ids, texts, lengths.prompt_tokens)


def _made_with(settings: OutOfDomain, checkpoint: Path) -> dict[str, Any]:
    """All that records depend on: not the mesh, and not who grades."""
    values = dataclasses.asdict(settings)
    del values["mesh"], values["workers"]
    # A stage's checkpoints are folders named by their steps, of which the latest is read.
    steps = [int(path.name) for path in checkpoint.glob("*") if path.name.isdigit()]
    return {"checkpoint": str(checkpoint.resolve()), "step": max(steps, default=None), **values}
