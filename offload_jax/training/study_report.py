"""A study's table and figures, from records, scores and metrics alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich.console

from offload_jax.evaluation.budgets import (
    Curve,
    budget_curve,
    calibrate,
    oracle_curve,
    random_curve,
    thresholded,
)
from offload_jax.evaluation.comparison import Entry, as_json, compare, latex, markdown, terminal
from offload_jax.evaluation.figures import bars, budget_curves, sweep, training_curves
from offload_jax.evaluation.metrics import capped, conditional_accuracy, overall_accuracy
from offload_jax.evaluation.records import read_records
from offload_jax.training.logging import read_metrics
from offload_jax.training.study import Study, variant_name
from offload_jax.training.study_table import ALONE, CLOUD, Seed, entries, label, ordered, seeds_of

REFERENCE = "gapg"


def report(study: Study, path: str | Path, console: rich.console.Console) -> None:
    """Writes table.{md,tex,json} and figures/, and prints the table."""
    path, cap = Path(path).resolve(), study.base.evaluation.cap
    rows, seeds = entries(study, path), seeds_of(study, path)
    comparison = compare(
        rows, reference=label(REFERENCE), device=ALONE, cloud=CLOUD, cap=cap, seed=study.seeds[0]
    )
    (path / "table.md").write_text(markdown(comparison), encoding="utf-8")
    (path / "table.tex").write_text(latex(comparison), encoding="utf-8")
    text = json.dumps(as_json(comparison), indent=1, allow_nan=False) + "\n"
    (path / "table.json").write_text(text, encoding="utf-8")
    figures = path / "figures"
    _training(study, seeds, figures / "training.png")
    _budgets(rows, figures / "budgets.png")
    _filter(study, rows, figures / "filter.png")
    _difficulty(study, seeds, figures / "difficulty.png")
    for name in study.sweeps:
        _sweep(study, seeds, name, figures)
    console.print(terminal(comparison))
    console.print(f"table.md, table.tex, table.json and figures are in {path}")


def _training(study: Study, seeds: Sequence[Seed], path: Path) -> None:
    runs = {}
    for method in ordered(study.methods):
        metrics = [read_metrics(seed.workdir / "metrics.jsonl") for seed in seeds]
        runs[label(method)] = [[row for row in rows if row["stage"] == method] for rows in metrics]
    training_curves(runs, path, cap=study.base.evaluation.cap)


def _budgets(rows: dict[str, list[Entry]], path: Path) -> None:
    """Accuracy at every budget by each row's score, and where its own decisions put it."""
    curves: dict[str, list[Curve]] = {}
    points = {}
    for name, row in rows.items():
        scored = row[0].scores is not None
        if name.endswith("+ dial") or name == "& oracle" or not scored:
            continue
        curves[name] = [budget_curve(e.results, e.scores, seed=i) for i, e in enumerate(row)]
        outcomes = [entry.outcome for entry in row]
        points[name] = (
            float(np.mean([o.offloaded.mean() for o in outcomes])),
            float(np.mean([o.correct.mean() for o in outcomes])),
        )
    curves["random"] = [random_curve(entry.results) for entry in rows[ALONE]]
    curves["oracle"] = [oracle_curve(entry.results) for entry in rows[ALONE]]
    budget_curves(curves, points, path)


def _filter(study: Study, rows: dict[str, list[Entry]], path: Path) -> None:
    """GAPG with and without its filter."""
    names = [name for name in (label("gapg"), label("gapg_without_filter")) if name in rows]
    groups = ("overall", "conditional", "local", "call ratio")
    bars(groups, {name: _shares(rows[name]) for name in names}, "", "percent", path)


def _shares(row: Sequence[Entry]) -> list[list[float]]:
    overall = [100 * overall_accuracy(entry.outcome).value for entry in row]
    conditional = [100 * conditional_accuracy(entry.outcome).value for entry in row]
    local = [100 * float(entry.results.device_correct.mean()) for entry in row]
    return [overall, conditional, local, [100 * float(e.results.called.mean()) for e in row]]


def _difficulty(study: Study, seeds: Sequence[Seed], path: Path) -> None:
    """Calls by the count of numbers in the prompt, before the cap."""
    methods = [name for name in ordered(study.methods) if name != study.routed]
    counts: dict[int, dict[str, list[float]]] = {}
    for method in methods:
        for seed in seeds:
            by_size: dict[int, list[bool]] = {}
            for record in read_records(seed.workdir.records(method)):
                by_size.setdefault(len(record.gold["numbers"]), []).append(record.called)
            for size, called in by_size.items():
                cell = counts.setdefault(size, {}).setdefault(label(method), [])
                cell.append(100 * float(np.mean(called)))
    sizes = sorted(counts)
    series = {label(m): [counts[size][label(m)] for size in sizes] for m in methods}
    bars([f"{size} numbers" for size in sizes], series, "", "responses that call (%)", path)


def _sweep(study: Study, seeds: Sequence[Seed], name: str, figures: Path) -> None:
    """Overall accuracy, local accuracy and calls of the swept methods at each value."""
    settings = study.sweeps[name]
    measured: dict[str, list[list[float]]] = {}
    budgets = None
    if settings.setting == "learning.filter.rho":  # each value is trained for its own budget
        budgets = [value / (1 + value) for value in settings.at]
    for i, value in enumerate(settings.at):
        cap = budgets[i] if budgets else study.base.evaluation.cap
        for method in settings.methods:
            same = study.variants[name, method, value] == study.methods[method]
            policy = method if same else variant_name(name, method, value)
            results = [seed.results(policy) for seed in seeds[: settings.seeds]]
            overall = [
                capped(r, cap, s.seed).correct.mean() for r, s in zip(results, seeds, strict=False)
            ]
            for what, values in (
                ("overall", overall),
                ("local", [r.device_correct.mean() for r in results]),
                ("calls", [r.called.mean() for r in results]),
            ):
                line = measured.setdefault(f"{label(method)}: {what}", [])
                line.append([100 * float(v) for v in values])
            if budgets:
                line = measured.setdefault(f"{label(method)}, one policy with the dial", [])
                line.append([_dial(seed, method, cap) for seed in seeds[: settings.seeds]])
    if budgets:
        x, x_label = [100 * budget for budget in budgets], "call budget trained for (%)"
    else:
        x, x_label = list(settings.at), settings.setting
    sweep(x, measured, x_label, "percent of test prompts", figures / f"{name}.png")


def _dial(seed: Seed, method: str, cap: float) -> float:
    """Overall accuracy, in percent, of one policy whose P(call) is dialled to a budget."""
    held_out, test = seed.results(method, "validation"), seed.results(method)
    threshold = calibrate(held_out.p_call, held_out.prompt_ids, cap, seed.seed)
    outcome = thresholded(test, test.p_call, threshold, cap, seed.seed)
    return 100 * float(outcome.correct.mean())
