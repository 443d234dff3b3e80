"""The main job: data, supervised start, post-training, evaluation, table and plots."""

import dataclasses
import hashlib
import json
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
import rich.console

from offload_jax.cloud import make_cloud
from offload_jax.cloud.protocol import Cloud
from offload_jax.device.params import Params, param_shardings
from offload_jax.evaluation.evaluate import evaluate
from offload_jax.evaluation.plots import plot_curves
from offload_jax.evaluation.records import Record, read_records, write_records
from offload_jax.evaluation.table import build_table, markdown, terminal
from offload_jax.learning.update import TrainState
from offload_jax.pretrained.checkpoint import Pretrained
from offload_jax.processes import gather, is_main, main_first, tell, together
from offload_jax.sampling.sampler import Sampler
from offload_jax.sampling.text import encode_prompts
from offload_jax.settings import require
from offload_jax.sharding import make_mesh, prepare_devices, prompt_shards
from offload_jax.tasks import make_task
from offload_jax.training.checkpoints import Checkpoints
from offload_jax.training.detectors import collapse
from offload_jax.training.experiment import Experiment, check_devices
from offload_jax.training.logging import Log, open_log, read_metrics
from offload_jax.training.loop import Stage, run_stage
from offload_jax.training.post_training import init_post_training, post_training_stage
from offload_jax.training.start import init_start, start_stage
from offload_jax.training.workdir import Workdir, keep_programs, open_workdir


def run(experiment: Experiment, path: str | Path, console: rich.console.Console) -> None:
    """Does what of the main job is not yet done in the workdir `path`, and prints the table.

    Raises:
        ValueError: settings, devices, tokenizer or workdir do not fit; nothing is computed then.
        RunError: a loss or gradient is not finite.
    """
    prepare_devices(experiment.mesh)
    mesh = make_mesh(experiment.mesh)
    check_devices(experiment, prompt_shards(mesh))
    param_shardings(experiment.device, mesh)
    check_processes(experiment)
    workdir = main_first(lambda: open_workdir(path, experiment))
    finished = [workdir.records(policy).exists() for policy in policies(experiment)]
    if tell(lambda: all(finished)):
        console.print(f"This run is finished: {workdir.path}. A new --workdir starts another.")
    else:
        keep_programs(workdir / "cache")
        with (
            jax.set_mesh(mesh),
            open_log(workdir.path) as log,
            closing(Job(experiment, workdir, log, mesh)) as job,
        ):
            _run(job)
    if is_main():
        report(experiment, workdir, console)


def check_processes(experiment: Experiment) -> None:
    """Raises ValueError if the processes of the job were not given the same settings."""
    settings = json.dumps(dataclasses.asdict(experiment), sort_keys=True)
    others = gather(hashlib.sha256(settings.encode()).hexdigest())
    require(
        len(set(others)) == 1,
        "The processes of this job have different settings: give all of them the same command.",
    )


def policies(experiment: Experiment) -> tuple[str, str]:
    """What is tested, in order; a stage of training makes each."""
    return "start", experiment.learning.objective.name


def _run(job: "Job") -> None:
    start, trained = policies(job.experiment)
    params = job.start()
    job.test(start, params)
    params = job.post_train(trained, params, job.experiment)
    job.test(trained, params, "validation")  # for setting a dial
    job.test(trained, params)


def report(experiment: Experiment, workdir: Workdir, console: rich.console.Console) -> None:
    """Makes table and plot from records and metrics alone, and prints the table."""
    names, cap = policies(experiment), experiment.evaluation.cap
    records = [read_records(workdir.records(policy)) for policy in names]
    table = build_table(*records, cap=cap, seed=experiment.seed)
    rows = read_metrics(workdir / "metrics.jsonl")
    plot_curves(rows, workdir / "curves.png", stage=names[1], cap=cap)
    (workdir / "table.md").write_text(markdown(table), encoding="utf-8")
    for part in terminal(table):
        console.print(part)
    console.print(f"Records, metrics, checkpoints, table.md and curves.png are in {workdir.path}")


class Job:
    """Stages and tests of one workdir; each goes on where it was, or finds itself done."""

    def __init__(self, experiment: Experiment, workdir: Workdir, log: Log, mesh: jax.sharding.Mesh):
        self.experiment, self.workdir, self.log, self.mesh = experiment, workdir, log, mesh
        pretrained, settings = experiment.device.pretrained, dataclasses.asdict(experiment.task)
        vocabulary = None if pretrained is None else Pretrained(pretrained).vocabulary()
        name = settings.pop("name")
        task = main_first(lambda: make_task(name, workdir.data, vocabulary, **settings))
        size = task.vocabulary.tokenizer.get_vocab_size()
        if size > experiment.device.vocabulary:
            raise ValueError(
                f"config.device.vocabulary is {experiment.device.vocabulary}; the tokenizer of"
                f" {task.name} has {size} tokens."
            )
        self.sampler = Sampler(task, experiment.device, experiment.sampling, mesh)
        self.cloud: Cloud = make_cloud(experiment.cloud, task, workdir.path, mesh)
        together(self._check_prompts)

    def start(self) -> Params:
        """The device LLM before post-training."""
        state = init_start(self.experiment, self.sampler, self.mesh)
        return self._stage(start_stage(self.experiment, self.sampler), state).params

    def post_train(self, name: str, params: Params, experiment: Experiment) -> Params:
        """The device LLM after post-training as a policy called `name`.

        Args:
            name: of the stage, its checkpoints and metrics.
            params: where it starts from.
            experiment: this job's, or one that differs from it in what post-training reads.
        """
        sampler = dataclasses.replace(self.sampler, sampling=experiment.sampling)
        warn = partial(self._collapse_warning, name)
        stage = post_training_stage(experiment, sampler, self.cloud, name, warn)
        return self._stage(stage, init_post_training(experiment, params, self.mesh)).params

    def test(
        self, name: str, params: Params, split: str = "test", samples: int = 0
    ) -> list[Record]:
        """The records of a policy on the prompts of a split, made unless they are there."""
        path = self.workdir.records(name if split == "test" else f"{name}.{split}")
        if tell(path.exists):
            return read_records(path)
        settings = self.experiment.evaluation
        limit = {"test": settings.test_prompts, "validation": settings.validation_prompts}
        records = evaluate(
            params,
            self.sampler,
            self.cloud,
            self.sampler.task.prompts(split)[: limit.get(split)],
            policy=name,
            seed=self.experiment.seed,
            batch=settings.batch,
            usage=settings.usage,
            ask_all=split != "train",  # what routers learn from needs no cloud
            fallbacks=True,
            samples=samples,
        )
        if is_main():
            path.parent.mkdir(exist_ok=True)
            write_records(path, records)
        return records

    def close(self) -> None:
        """Ends the calls that are under way with the cloud: after Ctrl-C there may be some."""
        self.cloud.close()

    def _check_prompts(self) -> None:
        """Raises ValueError if a prompt of any split does not fit config.sampling.prompt_tokens."""
        task, S = self.sampler.task, self.experiment.sampling.prompt_tokens
        for split in ("train", "validation", "test"):
            prompts = task.prompts(split)[:]
            wanted = {
                "validation": self.experiment.evaluation.validation_prompts,
                "test": self.experiment.evaluation.test_prompts,
            }.get(split, 1)
            require(
                len(prompts) >= wanted,
                f"config.evaluation.{split}_prompts is {wanted}; the task has {len(prompts)}.",
            )
            texts = [task.device_text(prompt) for prompt in prompts]
            encode_prompts(task.vocabulary, [prompt.id for prompt in prompts], texts, S)

    def _stage(self, stage: Stage, state: TrainState) -> TrainState:
        folder = self.workdir.checkpoints(stage.name)
        with Checkpoints(folder, self.experiment.keep_checkpoints) as checkpoints:
            device, vocabulary = self.experiment.device, self.sampler.vocabulary
            return run_stage(stage, state, checkpoints, self.log, device, vocabulary)

    def _collapse_warning(self, stage: str) -> str | None:
        rows = read_metrics(self.workdir / "metrics.jsonl")
        name = "validation/call_ratio"
        history = [row[name] for row in rows if row["stage"] == stage and name in row]
        return collapse(history, self.experiment.learning.collapse_patience)
