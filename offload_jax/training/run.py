"""The main job: data, supervised start, post-training, evaluation, table and plots."""

import dataclasses
from pathlib import Path

import jax
import rich.console

from offload_jax.cloud import make_cloud
from offload_jax.cloud.protocol import Cloud
from offload_jax.device.params import Params, param_shardings
from offload_jax.evaluation.evaluate import evaluate
from offload_jax.evaluation.plots import plot_curves
from offload_jax.evaluation.records import read_records, write_records
from offload_jax.evaluation.table import build_table, markdown, terminal
from offload_jax.learning.update import TrainState
from offload_jax.sampling.sampler import Sampler
from offload_jax.sampling.text import encode_prompts
from offload_jax.sharding import make_mesh, prompt_shards, split_cpu
from offload_jax.tasks import make_task
from offload_jax.training.checkpoints import Checkpoints
from offload_jax.training.detectors import collapse
from offload_jax.training.experiment import Experiment, check_devices
from offload_jax.training.logging import RunLog, read_metrics
from offload_jax.training.loop import Stage, run_stage
from offload_jax.training.post_training import gapg_stage, init_gapg
from offload_jax.training.start import init_start, start_stage
from offload_jax.training.workdir import Workdir, open_workdir

POLICIES = ("start", "gapg")  # what is tested, in order; a stage of training makes each


def run(experiment: Experiment, path: str | Path, console: rich.console.Console) -> None:
    """Does what of the main job is not yet done in the workdir `path`, and prints the table.

    Raises:
        ValueError: settings, devices, tokenizer or workdir do not fit; nothing is computed then.
        RunError: a loss or gradient is not finite.
    """
    split_cpu(experiment.mesh)
    mesh = make_mesh(experiment.mesh)
    check_devices(experiment, prompt_shards(mesh))
    param_shardings(experiment.device, mesh)
    workdir = open_workdir(path, experiment)
    if all(workdir.records(policy).exists() for policy in POLICIES):
        console.print(f"This run is finished: {workdir.path}. A new --workdir starts another.")
    else:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "cache"))
        with jax.set_mesh(mesh), RunLog(workdir.path) as log:
            _Job(experiment, workdir, log, mesh).run()
    report(experiment, workdir, console)


def report(experiment: Experiment, workdir: Workdir, console: rich.console.Console) -> None:
    """Makes table and plot from records and metrics alone, and prints the table."""
    records = [read_records(workdir.records(policy)) for policy in POLICIES]
    table = build_table(*records, cap=experiment.evaluation.cap, seed=experiment.seed)
    rows = read_metrics(workdir / "metrics.jsonl")
    plot_curves(rows, workdir / "curves.png", cap=experiment.evaluation.cap)
    (workdir / "table.md").write_text(markdown(table), encoding="utf-8")
    for part in terminal(table):
        console.print(part)
    console.print(f"Records, metrics, checkpoints, table.md and curves.png are in {workdir.path}")


class _Job:
    """The parts of one run, and its stages in order."""

    def __init__(
        self, experiment: Experiment, workdir: Workdir, log: RunLog, mesh: jax.sharding.Mesh
    ):
        self.experiment, self.workdir, self.log, self.mesh = experiment, workdir, log, mesh
        task = make_task(experiment.task.name, workdir.data, **experiment.task.fields())
        size = task.tokenizer.get_vocab_size()
        if size > experiment.device.vocabulary:
            raise ValueError(
                f"config.device.vocabulary is {experiment.device.vocabulary}; the tokenizer of"
                f" {task.name} has {size} tokens."
            )
        self.sampler = Sampler(task, experiment.device, experiment.sampling, mesh)
        cloud = {k: v for k, v in dataclasses.asdict(experiment.cloud).items() if k != "kind"}
        self.cloud: Cloud = make_cloud(experiment.cloud.kind, task, **cloud)

    def run(self) -> None:
        experiment = self.experiment
        self.check_prompts()
        start = self.stage(
            start_stage(experiment, self.sampler),
            init_start(experiment, self.sampler, self.mesh),
        )
        self.test("start", start.params)
        end = self.stage(
            gapg_stage(experiment, self.sampler, self.cloud, self.collapse_warning),
            init_gapg(experiment, start.params, self.mesh),
        )
        self.test("gapg", end.params)

    def check_prompts(self) -> None:
        """Raises ValueError if a prompt of any split does not fit config.sampling.prompt_tokens."""
        task, S = self.sampler.task, self.experiment.sampling.prompt_tokens
        for split in ("train", "validation", "test"):
            prompts = task.prompts(split)[:]
            texts = [task.device_text(prompt) for prompt in prompts]
            encode_prompts(task.tokenizer, [prompt.id for prompt in prompts], texts, S)

    def stage(self, stage: Stage, state: TrainState) -> TrainState:
        folder = self.workdir.checkpoints(stage.name)
        with Checkpoints(folder, self.experiment.keep_checkpoints) as checkpoints:
            device, tokenizer = self.experiment.device, self.sampler.tokenizer
            return run_stage(stage, state, checkpoints, self.log, device, tokenizer)

    def test(self, policy: str, params: Params) -> None:
        """Evaluates a policy on the test prompts, unless its records are there."""
        path = self.workdir.records(policy)
        if path.exists():
            return
        prompts = self.sampler.task.prompts("test")[: self.experiment.evaluation.test_prompts]
        records = evaluate(
            params,
            self.sampler,
            self.cloud,
            prompts,
            policy=policy,
            seed=self.experiment.seed,
            batch=self.experiment.evaluation.batch,
            ask_all=True,
        )
        path.parent.mkdir(exist_ok=True)
        write_records(path, records)

    def collapse_warning(self) -> str | None:
        rows = read_metrics(self.workdir / "metrics.jsonl")
        name = "validation/call_ratio"
        history = [row[name] for row in rows if row["stage"] == "gapg" and name in row]
        return collapse(history, self.experiment.learning.collapse_patience)
