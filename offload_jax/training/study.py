"""A study: several methods and seeds side by side, sharing whatever work they have in common.

Per seed there is one workdir, `seed<k>`, with one start, one stage of post-training per method, the
records of every policy, and the scores of every router. Only `compute` trains; tables and figures
are made from what it leaves.
"""

import dataclasses
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import rich.console
from jaxtyping import Float

from offload_jax.device.params import Params
from offload_jax.evaluation.jsonl import read_lines, write_lines
from offload_jax.evaluation.records import Record
from offload_jax.learning.optimizer import OptimizerConfig
from offload_jax.routing import deberta
from offload_jax.routing.classifier import on_device
from offload_jax.routing.files import save_router
from offload_jax.routing.router import (
    Examples,
    RouterConfig,
    prompts_with_responses,
    router_scores,
    train_router,
)
from offload_jax.sampling.text import encode_prompts
from offload_jax.settings import check_program, nearest, parse, require, require_section
from offload_jax.sharding import make_mesh, prepare_devices, prompt_shards
from offload_jax.tasks.task import Prompt
from offload_jax.training.experiment import Experiment, check_devices, size
from offload_jax.training.experiment import from_config as experiment_from_config
from offload_jax.training.logging import RunLog
from offload_jax.training.run import Job
from offload_jax.training.start import embed_numbers
from offload_jax.training.workdir import Workdir, claim_parts, keep_programs, open_workdir

BASE = "start"  # the policy before post-training
REFERENCE = "gapg"  # the method that all others are compared with


@dataclasses.dataclass(frozen=True)
class RouterSettings:
    """A router that is trained on the device's successes and failures on the training prompts."""

    reads: Literal["prompt", "prompt_and_response"]
    body: Literal["deberta", "device"]  # from scratch, or from the policy's own weights
    optimizer: OptimizerConfig
    width: int = 96  # of DeBERTa, as the following
    layers: int = 2
    heads: int = 4
    mlp: int = 384
    buckets: int = 32
    max_distance: int = 256
    dropout: float = 0.1
    batch: int = 64
    epochs: int = 20
    patience: int = 3

    def config(self, experiment: Experiment) -> RouterConfig:
        """The router's own settings, for the policies of an experiment."""
        bodies = {"device": experiment.device, "deberta": None}
        if self.body == "deberta":
            names = ("width", "layers", "heads", "mlp", "buckets", "max_distance", "dropout")
            sizes = {name: getattr(self, name) for name in names}
            body = deberta.DebertaConfig(experiment.device.vocabulary, **sizes)
            bodies = {"device": None, "deberta": body}
        return RouterConfig(
            self.optimizer,
            **bodies,
            batch=self.batch,
            epochs=self.epochs,
            patience=self.patience,
        )


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Some methods again at other values of one setting."""

    setting: str  # path in the experiment, such as "learning.reward.call"
    at: tuple
    methods: tuple  # names in `methods`
    seeds: tuple  # at which it is trained, of those of the study

    def __post_init__(self):
        for name in ("at", "methods", "seeds"):
            require(len(getattr(self, name)) > 0, f"{name} must not be empty.")


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    A sweep is trained at those of its seeds that are the study's: none of them, and it is left out.

    Attributes:
        seeds: of the runs.
        methods: per method its experiment, at the first seed.
        routed: the method on whose policy routers and thresholds are put; None: they are left out.
        routers: what is trained on that policy.
        samples: responses per prompt for self-consistency on that policy; 0: none.
        sweeps: per sweep its methods again at other values.
        variants: per sweep, method and value the experiment.
    """

    seeds: tuple[int, ...]
    methods: Mapping[str, Experiment]
    routed: str | None
    routers: Mapping[str, RouterSettings]
    samples: int
    sweeps: Mapping[str, Sweep]
    variants: Mapping[tuple[str, str, Any], Experiment]

    @property
    def base(self) -> Experiment:
        """One method's experiment; all share it, but for `learning` and the group size."""
        return self.methods[self.routed or REFERENCE]

    def swept(self, sweep: str) -> tuple[int, ...]:
        """The seeds at which a sweep is trained."""
        return tuple(seed for seed in self.seeds if seed in self.sweeps[sweep].seeds)


def from_config(config: Mapping[str, Any]) -> Study:
    """The study that an ml_collections config describes.

    Its sections: `base` (an experiment), `seeds`, `methods` (per name what differs from `base`),
    `routed`, `routers`, `samples`, `sweeps`.

    Raises:
        ValueError: an unknown key or an impossible value, named by its path.
    """
    config = _sections(config)
    _check_names([*config["methods"], *config["routers"], *config["sweeps"]])
    seeds = _seeds(config["seeds"])
    methods = {
        name: _experiment(config["base"], changes, seeds[0], f"config.methods.{name}")
        for name, changes in config["methods"].items()
    }
    routed = config["routed"]
    require(
        routed is None or routed in methods,
        f"config.routed is {routed!r}; it must be in config.methods.",
    )
    require(
        REFERENCE in methods and routed != REFERENCE,
        f"config.methods needs {REFERENCE}, which all others are compared with, besides the method"
        " of config.routed.",
    )
    require(
        routed is not None or not (config["routers"] or config["samples"]),
        "config.routed is None: config.routers must be empty and config.samples 0.",
    )
    require(BASE not in methods, f"config.methods.{BASE}: the name stands for the start.")
    base = methods[routed or REFERENCE]
    for seed in seeds:
        _seeded(base, seed)  # raises where it cannot be one
    for name, experiment in methods.items():
        _check_shared(base, experiment, f"config.methods.{name}")
    sweeps = {
        name: parse(Sweep, values, f"config.sweeps.{name}")
        for name, values in config["sweeps"].items()
    }
    variants = {
        (name, method, value): _variant(config, base, name, sweep, method, value)
        for name, sweep in sweeps.items()
        for method in sweep.methods
        for value in sweep.at
    }
    routers = {
        name: parse(RouterSettings, values, f"config.routers.{name}")
        for name, values in config["routers"].items()
    }
    for name, settings in routers.items():
        _check_router(settings, base, f"config.routers.{name}")
    return Study(seeds, methods, routed, routers, config["samples"], sweeps, variants)


def _sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as plain dicts, complete and of the right types on its first level."""
    require_section(config, "config")
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    check_program(config, "experiments.table")
    known = ("base", "seeds", "methods", "routed", "routers", "samples", "sweeps")
    for key in config:
        require(key in known, f"config.{key} is not a setting{nearest(key, known)}")
    for key in known:
        require(key in config, f"config.{key} is missing.")
    for key in ("base", "methods", "routers", "sweeps"):
        require(isinstance(config[key], Mapping), f"config.{key} must be a section.")
    require("seed" not in config["base"], "config.base.seed: seeds are listed in config.seeds.")
    samples = config["samples"]
    require(
        type(samples) is int and samples >= 0,
        f"config.samples is {samples!r}; it must be an integer of at least 0.",
    )
    return config


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        require(
            re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None and names.count(name) == 1,
            f"{name!r}, in config.methods, routers or sweeps, must be a name of its own, of"
            " letters, digits, _ and -.",
        )


def _seeds(values: Any) -> tuple[int, ...]:
    seeds = tuple(values) if isinstance(values, tuple | list) else ()
    require(
        len(seeds) > 0 and len(set(seeds)) == len(seeds) and all(type(s) is int for s in seeds),
        f"config.seeds is {values!r}; it must be different integers.",
    )
    return seeds


def _check_shared(base: Experiment, experiment: Experiment, path: str) -> None:
    """Methods of one seed share data, start, cloud and evaluation; they differ in what follows."""
    sampling = dataclasses.replace(experiment.sampling, group=base.sampling.group)
    differing = dataclasses.replace(experiment, learning=base.learning, sampling=sampling)
    changed = [
        field.name
        for field in dataclasses.fields(base)
        if getattr(differing, field.name) != getattr(base, field.name)
    ]
    require(
        not changed,
        f"{path} changes {', '.join(changed)}, which all methods share; only learning and"
        " sampling.group may differ.",
    )


def _check_router(settings: RouterSettings, base: Experiment, path: str) -> None:
    try:
        settings.config(base)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    train = size(base.task, "train")
    require(
        train is None or settings.batch <= train,
        f"{path}.batch is {settings.batch}; config.base.task.train has {train}.",
    )


def _variant(config, base: Experiment, name: str, sweep: Sweep, method: str, value: Any):
    path = f"config.sweeps.{name}"
    require(method in config["methods"], f"{path}.methods: {method!r} is not in config.methods.")
    require(sweep.setting != "seed", f"{path}.setting is seed; seeds are listed in config.seeds.")
    changes = value
    for key in reversed(sweep.setting.split(".")):
        changes = {key: changes}
    merged = _merged(config["methods"][method], changes)
    experiment = _experiment(config["base"], merged, base.seed, path)
    _check_shared(base, experiment, path)
    return experiment


def _experiment(base: Mapping, changes: Mapping, seed: int, path: str) -> Experiment:
    require(isinstance(changes, Mapping), f"{path} must be a section.")
    require("seed" not in changes, f"{path}.seed: seeds are listed in config.seeds.")
    try:
        return experiment_from_config({**_merged(base, changes), "seed": seed})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _merged(base: Any, changes: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return changes
    return {
        **base,
        **{key: _merged(base.get(key), value) for key, value in changes.items()},
    }


# --- the work ---


def compute(study: Study, path: str | Path, console: rich.console.Console) -> None:
    """Trains and evaluates whatever is missing in the study's workdir.

    Of a seed whose records and scores are all there nothing is opened, with or without weights.

    Raises:
        ValueError: settings, devices or workdir do not fit; nothing is computed then.
        RunError: a loss or gradient is not finite.
    """
    workdirs = prepare(study, path)
    for name, sweep in study.sweeps.items():
        if not study.swept(name):
            seeds = ", ".join(map(str, sweep.seeds))
            console.print(
                f"Sweep {name} is left out: config.seeds has none of its seeds ({seeds})."
            )
    base, mesh, path = study.base, make_mesh(study.base.mesh), Path(path).resolve()
    keep_programs(path / "cache")
    for seed, workdir in workdirs.items():
        began = time.perf_counter()
        if all(file.exists() for file in _results(study, workdir, seed)):
            claim_policies(path, study)
            console.print(f"Seed {seed}: everything is there.")
            continue
        with (
            jax.set_mesh(mesh),
            RunLog(workdir.path) as log,
            closing(Job(_seeded(base, seed), workdir, log, mesh)) as job,
        ):
            claim_policies(path, study)  # not before everything has been checked
            _compute_seed(study, job, console)
        minutes = (time.perf_counter() - began) / 60
        console.print(f"Seed {seed}: everything is there ({minutes:.1f} minutes).")


def prepare(study: Study, path: str | Path) -> dict[int, Workdir]:
    """The workdirs of all seeds, opened before anything is computed in one of them.

    Raises ValueError if settings, devices or a workdir do not fit.
    """
    prepare_devices(study.base.mesh)
    shards = prompt_shards(make_mesh(study.base.mesh))
    for experiment in (*study.methods.values(), *study.variants.values()):
        check_devices(experiment, shards)
    folders = {seed: Path(path).resolve() / f"seed{seed}" for seed in study.seeds}
    return {
        seed: open_workdir(folder, _seeded(study.base, seed), without=("learning",))
        for seed, folder in folders.items()
    }


def claim_policies(path: Path, study: Study) -> None:
    """Notes in `study.json` what every policy and router is; others may join later.

    Raises:
        ValueError: the folder has one of the same name with other settings.
    """
    parts = {f"methods.{name}": experiment for name, experiment in study.methods.items()}
    for (sweep, method, value), experiment in study.variants.items():
        parts[f"variants.{variant_name(sweep, method, value)}"] = experiment
    parts |= {f"routers.{name}": settings for name, settings in study.routers.items()}
    # The seed is the folder's: a study may get more seeds.
    claimed = {name: {**dataclasses.asdict(part), "seed": None} for name, part in parts.items()}
    if study.routed is not None:
        claimed |= {"routed": study.routed, "samples": study.samples}
    claim_parts(path / "study.json", claimed)


def _results(study: Study, workdir: Workdir, seed: int) -> Iterator[Path]:
    """The files that a seed's part of the table is made from."""
    for policy in (BASE, *study.methods):
        yield workdir.records(policy)
        yield workdir.records(f"{policy}.validation")
    for key in _variants(study, seed):
        yield workdir.records(f"{variant_name(*key)}.validation")
    for router in study.routers:
        yield from (scores_path(workdir, router, split) for split in ("validation", "test"))


def _variants(study: Study, seed: int) -> Iterator[tuple[str, str, Any]]:
    """The sweeps' values at which a seed trains: not those that a method's own run has."""
    for key, experiment in study.variants.items():
        sweep, method, _ = key
        if experiment != study.methods[method] and seed in study.swept(sweep):
            yield key


def _compute_seed(study: Study, job: Job, console: rich.console.Console) -> None:
    seed = job.experiment.seed
    start = job.start()
    for split in ("validation", "test"):
        job.test(BASE, start, split)
    for name, experiment in study.methods.items():
        params = job.post_train(name, start, _seeded(experiment, seed))
        samples = study.samples if name == study.routed else 0
        for split in ("validation", "test"):
            job.test(name, params, split, samples)
        if name == study.routed:
            _route(study, job, params, console)
    for key in _variants(study, seed):
        name = variant_name(*key)
        params = job.post_train(name, start, _seeded(study.variants[key], seed))
        job.test(name, params, "validation")  # settings are not chosen by test prompts


def _seeded(experiment: Experiment, seed: int) -> Experiment:
    return dataclasses.replace(experiment, seed=seed)


def variant_name(sweep: str, method: str, value: Any) -> str:
    """The policy's name of a method at a value of a sweep."""
    return f"{method}.{sweep}.{value}"


# --- trained routers ---


def _route(study: Study, job: Job, params: Params, console: rich.console.Console) -> None:
    """Trains the routers on a policy's training records and writes their scores."""
    for name, settings in study.routers.items():
        if all(scores_path(job.workdir, name, s).exists() for s in ("validation", "test")):
            continue
        splits = ("train", "validation", "test")
        records = {split: job.test(study.routed, params, split) for split in splits}
        config = settings.config(job.experiment)
        examples = {split: _examples(job, settings, rows) for split, rows in records.items()}
        if settings.body == "device":
            first = on_device(jax.device_get(params), job.experiment.device)
        else:
            first = deberta.init_params(config.deberta, jax.random.key(job.experiment.seed))
            first = embed_numbers(first, job.sampler)  # as the device LLM's are: a fair start
        began = time.perf_counter()
        trained = train_router(
            first, examples["train"], examples["validation"], config, job.experiment.seed
        )
        console.print(
            f"Router {name}, seed {job.experiment.seed}: best of {len(trained.history)} epochs is"
            f" {trained.best + 1}, validation loss"
            f" {trained.history[trained.best].validation_loss:.3f}"
            f" ({time.perf_counter() - began:.0f} s)"
        )
        save_router(job.workdir / "routers" / name, trained.params, config)
        for split in ("validation", "test"):
            rows = examples[split]
            scores = router_scores(trained.params, config, rows.tokens, rows.lengths)
            lines = [
                {"prompt_id": record.prompt_id, "score": float(score)}
                for record, score in zip(records[split], scores, strict=True)
            ]
            write_lines(scores_path(job.workdir, name, split), lines)


def _examples(job: Job, settings: RouterSettings, records: Sequence[Record]) -> Examples:
    task, sampling = job.sampler.task, job.experiment.sampling
    texts = [task.device_text(Prompt(r.prompt_id, r.question, r.gold)) for r in records]
    ids = [record.prompt_id for record in records]
    prompts = encode_prompts(task.vocabulary, ids, texts, sampling.prompt_tokens)
    tokens, lengths = prompts.tokens, prompts.lengths
    if settings.reads == "prompt_and_response":
        responses = np.zeros((len(records), sampling.response_tokens), np.int32)
        for row, record in zip(responses, records, strict=True):
            row[: record.device_tokens] = record.response_tokens
        own = np.array([record.device_tokens for record in records], np.int32)
        tokens, lengths = prompts_with_responses(tokens, lengths, responses, own)
    # Where a router is used the policy may not call: it answers by its fallback instead.
    wrong = np.array([not (record.device_correct or record.fallback_correct) for record in records])
    return Examples(tokens, lengths, wrong)


def scores_path(workdir: Workdir, router: str, split: str) -> Path:
    """Where a router's scores of a split lie."""
    return workdir / "scores" / f"{router}.{split}.jsonl"


def read_scores(path: Path, prompt_ids: Sequence[int]) -> Float[np.ndarray, " n"]:
    """A router's scores in the order of `prompt_ids`.

    Raises:
        ValueError: the file has other prompts, or a score that is no probability.
    """
    scores: dict[int, float] = {}
    for number, row in enumerate(read_lines(path), 1):
        prompt, score = row.get("prompt_id"), row.get("score")
        good = type(prompt) is int and type(score) is float and 0 <= score <= 1
        good = good and prompt not in scores
        require(good, f"{path}, line {number}, is not a new prompt_id and its score.")
        scores[prompt] = score
    require(set(scores) == set(map(int, prompt_ids)), f"{path} is about other prompts.")
    return np.array([scores[int(i)] for i in prompt_ids], float)
