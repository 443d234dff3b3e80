"""Several studies side by side, each a regime: where GAPG differs from its rivals, and by how much.

A regime is a study; every value of one of its sweeps is another point of the map, with the same
start. Points of studies are read from test prompts, those of sweeps from validation prompts, which
is all that a sweep is evaluated on. A last point of a sweep has every method at its own best value.
"""

import dataclasses
import json
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console

from offload_jax.evaluation import blocks, figures
from offload_jax.evaluation.blocks import NO_MEANING, Block, decimals
from offload_jax.evaluation.comparison import points
from offload_jax.evaluation.metrics import Estimate, capped, randomly_offloaded
from offload_jax.evaluation.records import Columns, without_calls
from offload_jax.evaluation.seeds import pooled_difference
from offload_jax.learning.prompt_filter import d2_caps
from offload_jax.settings import check_program, nearest, require
from offload_jax.training import study as studies
from offload_jax.training.experiment import Experiment
from offload_jax.training.logging import read_metrics
from offload_jax.training.study import BASE, REFERENCE, Study, variant_name
from offload_jax.training.study_table import Seed, dialled, label, ordered, seeds_of


@dataclasses.dataclass(frozen=True)
class Measured:
    """A method at one point: means over seeds, and how far GAPG is ahead of it (None: itself).

    Attributes:
        overall: accuracy under the cap, by its own calls.
        local: accuracy of the device.
        calls: share of responses that call, before the cap.
        dial: overall accuracy where the highest P(call) fill the budget.
        ahead: GAPG's overall minus its own.
        ahead_dial: the same of `dial`.
    """

    overall: float
    local: float
    calls: float
    dial: float
    ahead: Estimate | None
    ahead_dial: Estimate | None


@dataclasses.dataclass(frozen=True)
class Point:
    """One place of the map.

    Attributes:
        name: of the regime, with the setting and its value in a sweep.
        seeds: that were run.
        n: prompts, per seed.
        start: local accuracy before post-training, mean over seeds.
        random: overall accuracy of the start with random prompts offloaded, as many as the cap
            allows: what post-training has to beat.
        methods: what came out, by method.
        binding: share of GAPG's batches in which D2 reached its cap, in the first third of the
            steps and after it; None without a filter.
    """

    name: str
    seeds: int
    n: int
    start: float
    random: float
    methods: Mapping[str, Measured]
    binding: tuple[float, float] | None


def from_config(config: Mapping[str, Any]) -> dict[str, Study]:
    """The studies of `config.regimes`, by name, in its order.

    Raises:
        ValueError: a mistake, named by its path.
    """
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    check_program(config, "experiments.regimes")
    require(set(config) == {"regimes"}, "The config of a map has one section, regimes.")
    regimes = config["regimes"]
    require(isinstance(regimes, Mapping) and len(regimes) > 0, "config.regimes must have regimes.")
    found = {}
    for name, settings in regimes.items():
        require(
            re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None,
            f"config.regimes: {name!r} must be of letters, digits, _ and -.",
        )
        try:
            found[name] = studies.from_config(settings)
        except ValueError as error:
            raise ValueError(f"config.regimes.{name}: {error}") from None
    return found


def compute(
    regimes: Mapping[str, Study],
    path: str | Path,
    console: rich.console.Console,
    only: Sequence[str] | None = None,
) -> None:
    """Trains and evaluates what is missing of every regime, or of those in `only`.

    Raises:
        ValueError: a name of `only` is unknown, or settings do not fit; nothing is computed then.
        RunError: a loss or gradient is not finite.
    """
    for name in only or ():
        require(name in regimes, f"--only: {name!r} is no regime{nearest(name, tuple(regimes))}")
    names = list(only or regimes)
    for name in names:
        require(
            regimes[name].base.mesh == regimes[names[0]].base.mesh,
            f"config.regimes.{name}.base.mesh is not that of {names[0]}, but one process has one"
            " mesh: train them one by one with --only.",
        )
    for name in names:
        studies.prepare(regimes[name], Path(path) / name)
    for name in names:
        console.print(f"Regime {name}")
        studies.compute(regimes[name], Path(path) / name, console)


def report(regimes: Mapping[str, Study], path: str | Path, console: rich.console.Console) -> None:
    """Writes regimes.md, regimes.json and regimes.png of every regime that is complete.

    A sweep that is complete as well has a picture of its own, `<regime>.<sweep>.png`.
    """
    path = Path(path).resolve()
    found = [point for name, study in regimes.items() for point in measure(name, study, path)]
    missing = [name for name in regimes if name not in {point.name for point in found}]
    require(found, f"{path} has no complete regime yet.")
    written = "\n".join(map(blocks.markdown, tables(found, missing)))
    (path / "regimes.md").write_text(written, encoding="utf-8")
    text = json.dumps([dataclasses.asdict(point) for point in found], indent=1, allow_nan=False)
    (path / "regimes.json").write_text(text + "\n", encoding="utf-8")
    axis = f"{label(REFERENCE)} − rival, overall accuracy at the cap (points)"
    drawn = _drawn(found)
    if drawn:
        figures.differences(drawn, path / "regimes.png", axis)
    for name, study in regimes.items():
        _draw_sweeps(name, study, path)
    console.print(written, markup=False, soft_wrap=True)
    names = ["regimes.md", "regimes.json"] + ["regimes.png"] * bool(drawn)
    console.print(f"{', '.join(names)} are in {path}")


# --- points ---


def measure(name: str, study: Study, path: Path) -> Iterator[Point]:
    """The points of a regime: none unless every seed of the study is there, then its sweeps."""
    seeds = seeds_of(study, path / name)
    methods = [method for method in ordered(study.methods) if method != study.routed]
    main = {method: method for method in methods}
    if not _complete(seeds, main, "test"):
        return
    yield _point(name, study, study.methods[REFERENCE], seeds, main, "test")
    for sweep, settings in study.sweeps.items():
        if REFERENCE in settings.methods:
            few = _swept(study, sweep, seeds)
            setting = settings.setting.removeprefix("learning.")
            for title, policies in _along(study, sweep, few):
                reference = _experiment(study, policies[REFERENCE])
                yield _point(
                    f"{name}, {setting} {title}", study, reference, few, policies, "validation"
                )


def _along(study: Study, sweep: str, seeds: Sequence[Seed]) -> Iterator[tuple[str, dict[str, str]]]:
    """A sweep's values that are complete, then every method at its best: a title, the policies."""
    settings = study.sweeps[sweep]
    complete = []
    for value in settings.at:
        policies = _policies(study, sweep, value)
        if _complete(seeds, policies, "validation"):
            complete.append(policies)
            yield f"{value}", policies
    own = {method: method for method in settings.methods}
    if len(complete) == len(settings.at) and _complete(seeds, own, "validation"):
        best = {
            method: max(
                (policies[method] for policies in (own, *complete)),
                key=lambda policy: _mean_overall(seeds, policy, study.base.evaluation.cap),
            )
            for method in ordered(settings.methods)
        }
        read = operator.attrgetter(settings.setting)
        values = (str(read(_experiment(study, policy))) for policy in best.values())
        yield f"at each method's best ({', '.join(values)})", best


def _experiment(study: Study, policy: str) -> Experiment:
    """The settings of a policy: a method, or a method at a value of a sweep."""
    swept = {variant_name(*key): experiment for key, experiment in study.variants.items()}
    return {**swept, **study.methods}[policy]


def _policies(study: Study, sweep: str, value: Any) -> dict[str, str]:
    """Per method of a sweep its policy's name at a value; the method's own run may have it."""
    return {
        method: method
        if study.variants[sweep, method, value] == study.methods[method]
        else variant_name(sweep, method, value)
        for method in study.sweeps[sweep].methods
    }


def _swept(study: Study, sweep: str, seeds: Sequence[Seed]) -> list[Seed]:
    return [seed for seed in seeds if seed.seed in study.swept(sweep)]


def _complete(seeds: Sequence[Seed], policies: Mapping[str, str], split: str) -> bool:
    """Whether there are seeds, and all of them have all of it."""
    return bool(seeds) and all(
        seed.workdir.records(f"{policy}{'' if split == 'test' else f'.{split}'}").exists()
        for seed in seeds
        for policy in policies.values()
    )


def _point(
    name: str,
    study: Study,
    reference: Experiment,
    seeds: Sequence[Seed],
    policies: Mapping[str, str],
    split: str,
) -> Point:
    """One point.

    Args:
        name: its title.
        study: whose cap holds.
        reference: GAPG's settings there.
        seeds: that were run.
        policies: per method the policy's name in the records.
        split: whose records are read.
    """
    cap = study.base.evaluation.cap
    results = {
        method: [seed.results(policy, split) for seed in seeds]
        for method, policy in policies.items()
    }
    starts = [without_calls(seed.results(BASE, split)) for seed in seeds]
    random = [
        randomly_offloaded(each, cap, seed.seed).correct.mean()
        for each, seed in zip(starts, seeds, strict=True)
    ]
    return Point(
        name=name,
        seeds=len(seeds),
        n=results[REFERENCE][0].prompt_ids.size,
        start=_mean(starts, "device_correct"),
        random=float(np.mean(random)),
        methods=_measured(results, cap, [seed.seed for seed in seeds]),
        binding=_binding(seeds, policies[REFERENCE], reference),
    )


def _measured(
    results: Mapping[str, Sequence[Columns]], cap: float, seeds: Sequence[int]
) -> dict[str, Measured]:
    """The methods' numbers, from their records seed by seed."""

    def outcomes(way):
        return {
            method: [way(each, cap, seed) for each, seed in zip(rows, seeds, strict=True)]
            for method, rows in results.items()
        }

    own, dial = outcomes(capped), outcomes(dialled)

    def accuracy(way, method):
        return float(np.mean([outcome.correct.mean() for outcome in way[method]]))

    def ahead(way, method):
        return None if method == REFERENCE else pooled_difference(way[REFERENCE], way[method])

    return {
        method: Measured(
            overall=accuracy(own, method),
            local=_mean(rows, "device_correct"),
            calls=_mean(rows, "called"),
            dial=accuracy(dial, method),
            ahead=ahead(own, method),
            ahead_dial=ahead(dial, method),
        )
        for method, rows in results.items()
    }


def _mean(rows: Sequence[Columns], name: str) -> float:
    return float(np.mean([getattr(row, name).mean() for row in rows]))


def _binding(
    seeds: Sequence[Seed], policy: str, experiment: Experiment
) -> tuple[float, float] | None:
    """How often D2 is at its cap, early and late."""
    settings = experiment.learning
    if not settings.filter.enabled:
        return None
    caps = d2_caps(settings.filter.rho, settings.batch.prompts)
    early, late = [], []
    for seed in seeds:
        path = seed.workdir / "metrics.jsonl"
        for row in read_metrics(path):
            if row["stage"] == policy and row.get("d1") is not None:
                require(row["d1"] in range(len(caps)), f"{path}: d1 is {row['d1']!r:.80}.")
                part = early if row["step"] <= max(1, settings.steps / 3) else late
                part.append(row.get("d2") == caps[int(row["d1"])])
    return (float(np.mean(early)), float(np.mean(late))) if early and late else None


# --- words ---

_percent, _whole = decimals(1, 100), decimals(0, 100)


def tables(found: Sequence[Point], missing: Sequence[str] = ()) -> tuple[Block, Block]:
    """The map as two tables, a row per point: by own calls, and by the dial."""
    return _own_calls(found, missing), _by_dial(found)


def _own_calls(found: Sequence[Point], missing: Sequence[str]) -> Block:
    methods, rivals, ahead = _columns(found)
    prompts = " or ".join(f"{n:,}" for n in sorted({point.n for point in found}, reverse=True))
    return Block(
        header=(
            "", "seeds", "start", *map(label, methods), *ahead, "D2 at its cap",
        ),
        body=tuple(
            (
                point.name,
                str(point.seeds),
                f"{_percent(point.start)} / {_percent(point.random)}",
                *(_cell(point, method, ("overall", "local", "calls")) for method in methods),
                *(_ahead(point, rival, "ahead") for rival in rivals),
                " / ".join(map(_whole, point.binding)) if point.binding else NO_MEANING,
            )
            for point in found
        ),
        caption=(
            f"Percent of {prompts} prompts, means over seeds. Start: local / overall with random"
            f" prompts offloaded, up to the cap. Methods: overall at the cap / local / calls before"
            f" the cap. {ahead[0] if ahead else ''}: overall accuracy in points, 95 %"
            f" interval (bootstrap over seeds and prompts). D2 at its cap: share of"
            f" {label(REFERENCE)}'s batches in which as much of D2 is kept as the filter lets,"
            f" in the first third of the steps / after it. At each method's best: the value, of the"
            f" sweep's and the method's own, with its highest overall accuracy on the same"
            f" validation prompts."
            + (f" Not run: {', '.join(missing)}." if missing else "")
        ),
    )  # fmt: skip


def _by_dial(found: Sequence[Point]) -> Block:
    methods, rivals, ahead = _columns(found)
    return Block(
        header=("", *map(label, methods), *ahead),
        body=tuple(
            (
                point.name,
                *(_cell(point, method, ("dial",)) for method in methods),
                *(_ahead(point, rival, "ahead_dial") for rival in rivals),
            )
            for point in found
        ),
        caption=(
            "The same policies where the prompts with the highest P(call) go to the cloud, exactly"
            " as many as the cap allows, and the device answers all others: overall accuracy in"
            " percent, differences as above."
        ),
    )


def _columns(found: Sequence[Point]) -> tuple[list[str], list[str], list[str]]:
    """Methods, GAPG's rivals, and what the columns of their differences are called."""
    methods = ordered({method for point in found for method in point.methods})
    rivals = [method for method in methods if method != REFERENCE]
    return methods, rivals, [f"{label(REFERENCE)} − {label(rival)}" for rival in rivals]


def _cell(point: Point, method: str, names: Sequence[str]) -> str:
    found = point.methods.get(method)
    if found is None:
        return NO_MEANING
    return " / ".join(_percent(getattr(found, name)) for name in names)


def _ahead(point: Point, rival: str, name: str) -> str:
    return points(getattr(point.methods[rival], name)) if rival in point.methods else NO_MEANING


def _drawn(found: Sequence[Point]) -> dict[str, dict[str, Estimate]]:
    """Per rival, per point, how far GAPG is ahead."""
    rivals = ordered({method for point in found for method in point.methods} - {REFERENCE})
    return {
        label(rival): {
            point.name: point.methods[rival].ahead for point in found if rival in point.methods
        }
        for rival in rivals
    }


def _draw_sweeps(name: str, study: Study, path: Path) -> None:
    """A picture of every sweep whose values are all there: overall accuracy, seed by seed."""
    seeds, cap = seeds_of(study, path / name), study.base.evaluation.cap
    for sweep, settings in study.sweeps.items():
        few = _swept(study, sweep, seeds)
        at = [_policies(study, sweep, value) for value in settings.at]
        if not all(_complete(few, policies, "validation") for policies in at):
            continue
        measured = {
            label(method): [
                [100 * _overall(each, policies[method], cap) for each in few] for policies in at
            ]
            for method in ordered(settings.methods)
        }
        setting, what = settings.setting, "overall accuracy at the cap, % of validation prompts"
        figures.sweep(settings.at, measured, setting, what, path / f"{name}.{sweep}.png")


def _overall(seed: Seed, policy: str, cap: float) -> float:
    """A policy's overall accuracy at the cap, on validation prompts."""
    return float(capped(seed.results(policy, "validation"), cap, seed.seed).correct.mean())


def _mean_overall(seeds: Sequence[Seed], policy: str, cap: float) -> float:
    return float(np.mean([_overall(seed, policy, cap) for seed in seeds]))
