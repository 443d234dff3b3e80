"""A study's table and figures, from records, scores and metrics alone."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rich.console
from jaxtyping import Bool

from offload_jax.evaluation.budgets import (
    Curve,
    budget_curve,
    oracle_curve,
    random_curve,
)
from offload_jax.evaluation.comparison import Entry, as_json, compare, latex, markdown, terminal
from offload_jax.evaluation.figures import bars, budget_curves, sweep, training_curves, written
from offload_jax.evaluation.metrics import (
    OverCap,
    capped,
    conditional_accuracy,
    overall_accuracy,
)
from offload_jax.evaluation.records import read_records, without_calls
from offload_jax.settings import require
from offload_jax.training.logging import read_metrics
from offload_jax.training.study import REFERENCE, Study, Sweep, variant_name
from offload_jax.training.study_table import (
    CLOUD,
    START,
    Seed,
    dialled,
    entries,
    label,
    ordered,
    seeds_of,
)


def report(
    study: Study,
    path: str | Path,
    console: rich.console.Console,
    over_cap: OverCap = "wrong",
) -> None:
    """Writes table.{md,tex,json}, validation.md and figures/, and prints the table."""
    path, cap = Path(path).resolve(), study.base.evaluation.cap
    rows, seeds = entries(study, path, over_cap), seeds_of(study, path)
    base = START if study.routed is None else label(study.routed)
    comparison = compare(
        rows,
        reference=label(REFERENCE),
        device=base,
        cloud=CLOUD,
        cap=cap,
        seed=study.seeds[0],
        over_cap=over_cap,
    )
    (path / "table.md").write_text(markdown(comparison), encoding="utf-8")
    (path / "table.tex").write_text(latex(comparison), encoding="utf-8")
    text = json.dumps(as_json(comparison), indent=1, allow_nan=False) + "\n"
    (path / "table.json").write_text(text, encoding="utf-8")
    figures = path / "figures"
    _training(study, seeds, figures / "training.png")
    _budgets(rows, base, figures / "budgets.png")
    _filter(study, rows, figures / "filter.png")
    _difficulty(study, seeds, figures / "difficulty.png")
    there = [name for name in study.sweeps if study.swept(name)]
    swept = {name: _swept(study, seeds, name, over_cap) for name in there}
    for name, measured in swept.items():
        _sweep_figure(study.sweeps[name], measured, figures / f"{name}.png")
    tables = [_validation(study, seeds, over_cap), *_sweep_tables(study, swept)]
    (path / "validation.md").write_text("\n".join(tables), encoding="utf-8")
    console.print(terminal(comparison))
    console.print(f"table.md, table.tex, table.json, validation.md and figures are in {path}")


def _training(study: Study, seeds: Sequence[Seed], path: Path) -> None:
    runs = {}
    for method in ordered(study.methods):
        metrics = [read_metrics(seed.workdir / "metrics.jsonl") for seed in seeds]
        runs[label(method)] = [[row for row in rows if row["stage"] == method] for rows in metrics]
    training_curves(runs, path, cap=study.base.evaluation.cap)


def _budgets(rows: dict[str, list[Entry]], base: str, path: Path) -> None:
    """Accuracy at every budget by each row's score, and where its own decisions put it."""
    curves: dict[str, list[Curve]] = {}
    points = {}
    for name, row in rows.items():
        policy, dial, _ = name.partition(" + dial")
        if name == "& oracle":
            continue
        if row[0].scores is not None:
            curves[policy] = [budget_curve(entry.results, entry.scores, seed=0) for entry in row]
        if dial:
            continue  # one policy, one colour: its curve is the dial's, its point its own
        outcomes = [entry.outcome for entry in row]
        points[name] = (
            float(np.mean([o.offloaded.mean() for o in outcomes])),
            float(np.mean([o.correct.mean() for o in outcomes])),
        )
    device = [entry.results for entry in rows[base]]
    curves[f"random ({base})"] = [random_curve(results) for results in device]
    curves[f"oracle ({base})"] = [oracle_curve(results) for results in device]
    budget_curves(curves, points, path)


def _filter(study: Study, rows: dict[str, list[Entry]], path: Path) -> None:
    """GAPG with and without its filter."""
    names = [name for name in (label("gapg"), label("gapg_without_filter")) if name in rows]
    if len(names) < 2:
        return
    groups = ("overall", "conditional", "local", "call ratio")
    bars(groups, {name: _shares(rows[name]) for name in names}, "", "percent", path)


def _shares(row: Sequence[Entry]) -> list[list[float]]:
    overall = [100 * overall_accuracy(entry.outcome).value for entry in row]
    conditional = [conditional_accuracy(entry.outcome) for entry in row]
    local = [100 * float(entry.results.device_correct.mean()) for entry in row]
    calls = [100 * float(entry.calls.mean()) for entry in row]
    return [overall, [100 * c.value for c in conditional if c is not None], local, calls]


def _difficulty(study: Study, seeds: Sequence[Seed], path: Path) -> None:
    """Calls by the count of numbers in the prompt, before the cap; Countdown alone has those."""
    if study.base.task.name != "countdown":
        return
    methods = [name for name in ordered(study.methods) if name != study.routed]
    counts: dict[int, dict[str, list[float]]] = {}
    for method in methods:
        for seed in seeds:
            by_size: dict[int, list[bool]] = {}
            file = seed.workdir.records(method)
            for record in read_records(file):
                numbers = record.gold.get("numbers")
                known = isinstance(numbers, list)
                require(known, f"{file}: prompt {record.prompt_id} has no numbers.")
                by_size.setdefault(len(numbers), []).append(record.called)
            for size, called in by_size.items():
                cell = counts.setdefault(size, {}).setdefault(label(method), [])
                cell.append(100 * float(np.mean(called)))
    sizes = sorted(counts)
    series = {label(m): [counts[size][label(m)] for size in sizes] for m in methods}
    bars([f"{size} numbers" for size in sizes], series, "", "responses that call (%)", path)


def _swept(
    study: Study, seeds: Sequence[Seed], name: str, over_cap: OverCap
) -> dict[str, list[list[float]]]:
    """Per line, per value, percent of validation prompts of each seed; no test prompt decides."""
    settings = study.sweeps[name]
    measured: dict[str, list[list[float]]] = {}
    budgets = _budgets_trained_for(settings)
    few = [seed for seed in seeds if seed.seed in study.swept(name)]
    for i, value in enumerate(settings.at):
        cap = budgets[i] if budgets else study.base.evaluation.cap
        for method in settings.methods:
            same = study.variants[name, method, value] == study.methods[method]
            policy = method if same else variant_name(name, method, value)
            for seed in few:
                found = _found(seed, policy, method == study.routed, cap, over_cap)
                if budgets:
                    one_for_all = seed.results(method, "validation")
                    by_dial = dialled(one_for_all, cap, seed.seed).correct
                    found["overall, by one policy's P(call)"] = by_dial
                for what, hits in found.items():
                    cells = measured.setdefault(
                        f"{label(method)}: {what}", [[] for _ in settings.at]
                    )
                    cells[i].append(100 * float(hits.mean()))
    return measured


def _found(
    seed: Seed, policy: str, routed: bool, cap: float, over_cap: OverCap
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Per measure the validation prompts that count."""
    results = seed.results(policy, "validation")
    if routed:
        results = without_calls(results)  # as in the table: it is not meant to call
    return {
        "overall": capped(results, cap, seed.seed, over_cap).correct,
        "local": results.device_correct,
        "calls": results.called,
    }


def _budgets_trained_for(settings: Sweep) -> list[float] | None:
    """The share of calls that each value of ρ allows; None in another sweep."""
    if settings.setting != "learning.filter.rho":
        return None
    return [value / (1 + value) for value in settings.at]


def _sweep_figure(settings: Sweep, measured: dict[str, list[list[float]]], path: Path) -> None:
    budgets = _budgets_trained_for(settings)
    if budgets:
        x, x_label = [100 * budget for budget in budgets], "call budget trained for (%)"
    else:
        x, x_label = list(settings.at), settings.setting
    sweep(x, measured, x_label, "percent of validation prompts", path)


def _validation(study: Study, seeds: Sequence[Seed], over_cap: OverCap) -> str:
    """The methods on validation prompts: what settings may be chosen by; test prompts may not."""
    cap, rows = study.base.evaluation.cap, []
    for method in ordered(study.methods):
        found = [_found(seed, method, method == study.routed, cap, over_cap) for seed in seeds]
        cells = (100 * np.mean([hits[what].mean() for hits in found]) for what in found[0])
        rows.append(f"| {label(method)} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    prompts, of = found[0]["overall"].size, f"mean of {len(seeds)} seeds"
    title = f"percent of {prompts:,} validation prompts, {of if len(seeds) > 1 else 'one seed'}"
    head = [f"| {title} | overall | local | calls |", "|---|---:|---:|---:|"]
    return "\n".join([*head, *rows, ""])


def _sweep_tables(study: Study, swept: dict[str, dict[str, list[list[float]]]]) -> Iterator[str]:
    """The numbers behind the figures: percent of validation prompts, means over seeds."""
    for name, measured in swept.items():
        settings = study.sweeps[name]
        values = " | ".join(map(written, settings.at))
        lines = [f"| {settings.setting} | {values} |", "|---|" + "---:|" * len(settings.at)]
        for what, cells in measured.items():
            lines.append(f"| {what} | {' | '.join(f'{np.mean(cell):.1f}' for cell in cells)} |")
        yield "\n".join([*lines, ""])
