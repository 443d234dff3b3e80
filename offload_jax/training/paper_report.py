"""The paper's tables and figures from finished runs' records, beside the paper's own numbers.

The runs lie in one folder per experiment, called as its config, and one per seed:

| in `<workdir>/<experiment>/seed<k>/` | made by |
|---|---|
| `records/<method>.jsonl`, `scores/…`, `study.json` | `experiments.table`, on `<experiment>` |
| `<method>/records/…` | `experiments.launch`, of this method alone |
| `<method>/out_of_domain/records/<data set>.jsonl` | `experiments.evaluate` |

What is not there is a missing cell, never an error; a damaged file is one.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rich.console

from offload_jax.evaluation import blocks, figures
from offload_jax.evaluation.blocks import NO_MEANING, Block, decimals
from offload_jax.evaluation.budgets import budget_curve, random_curve
from offload_jax.evaluation.metrics import (
    Outcome,
    OverCap,
    call_ratio,
    capped,
    cloud_only,
    conditional_accuracy,
    local_accuracy,
    outcome_of,
    overall_accuracy,
    randomly_offloaded,
)
from offload_jax.evaluation.paper import (
    AVERAGE,
    CAP,
    EXPERIMENTS,
    OWN,
    PAPER,
    ROWS,
    TASKS,
    Column,
    Exhibit,
    Part,
)
from offload_jax.evaluation.records import Columns, columns, read_records, without_calls
from offload_jax.evaluation.seeds import mean_and_deviation
from offload_jax.files import read_object
from offload_jax.settings import require
from offload_jax.training.study import BASE, read_scores, scores_path, variant_name
from offload_jax.training.study_table import Seed, routed
from offload_jax.training.workdir import Workdir

ROUTER = "prompt_router"  # the study's router that the paper's row is
SETTINGS = {"group": "sampling.group", "call_reward": "learning.reward.call"}  # of the sweeps
SETTINGS["rho"] = "learning.filter.rho"
RHO = {20: 1 / 4, 30: 3 / 7, 40: 2 / 3, 50: 1.0}  # by the budget in percent that it stands for


# --- what is there ---


@dataclass(frozen=True)
class Run:
    """What one seed of an experiment left; None stands for what is not there."""

    folder: Path
    seed: int
    _read: dict[Path, Columns] = field(default_factory=dict)

    def results(self, policy: str, split: str = "test") -> Columns | None:
        """A policy's records, from a study or from a launch of this method alone."""
        name = policy if split == "test" else f"{policy}.{split}"
        found = self._columns(self.folder / "records" / f"{name}.jsonl")
        if found is not None or split != "test":
            return found
        if policy == BASE:
            return self._columns(self.folder / "gapg" / "records" / f"{BASE}.jsonl")
        launched = sorted((self.folder / policy / "records").glob("*.jsonl"))
        # The trained policy's file is called as its objective.
        trained = [path for path in launched if path.stem != BASE]
        return self._columns(trained[0]) if trained else None

    def on_task(self, policy: str, task: Column) -> Columns | None:
        """A policy's records on a data set; the first of `TASKS` is what MATH is trained on."""
        if task in (OWN, TASKS[0]):
            return self.results(policy)
        return self._columns(self.folder / policy / "out_of_domain" / "records" / f"{task}.jsonl")

    def scores(self, split: str, results: Columns) -> np.ndarray | None:
        """The router's scores, high = offload."""
        path = scores_path(Workdir(self.folder), ROUTER, split)
        return read_scores(path, results.prompt_ids) if path.exists() else None

    def variant(self, sweep: str, value: Any) -> Columns | None:
        """GAPG's validation records at a value of a sweep."""
        found = self.results(variant_name(sweep, "gapg", value), "validation")
        path = self.folder / "study.json"
        if found is not None or not path.exists():
            return found
        own = read_object(path).get("methods.gapg", {})
        for key in SETTINGS[sweep].split("."):
            own = own.get(key, {})
        return self.results("gapg", "validation") if own == value else None

    def _columns(self, path: Path) -> Columns | None:
        if path not in self._read and path.exists():
            self._read[path] = columns(read_records(path))
        return self._read.get(path)


def runs_of(workdir: Path, experiment: str) -> list[Run]:
    """The seeds of an experiment, in order."""
    folders = (workdir / experiment).glob("seed*")
    seeds = [path.name.removeprefix("seed") for path in folders if path.is_dir()]
    return [
        Run(workdir / experiment / f"seed{seed}", seed)
        for seed in sorted(int(seed) for seed in seeds if seed.isdecimal())
    ]


# --- our numbers, in percent unless the exhibit says otherwise ---


def _outcome(run: Run, row: str, task: Column, over_cap: OverCap) -> Outcome | None:
    """How the prompts of a data set fared in a row of the paper."""
    if row == "cloud":
        asked = (run.on_task(policy, task) for policy in ("task_tuned", "gapg", BASE))
        asked = [results for results in asked if results is not None and _cloud_is_known(results)]
        return cloud_only(asked[0]) if asked else None
    results = run.on_task("task_tuned" if row in _ROUTED else row, task)
    if results is None:
        return None
    if row not in _ROUTED:
        return capped(results, CAP, run.seed, over_cap)
    results = without_calls(results)
    return _ROUTED[row](run, results, task)


def _alone(run: Run, results: Columns, task: Column) -> Outcome:
    return outcome_of(results, np.zeros(len(results.prompt_ids), bool), "no offloading")


def _naive(run: Run, results: Columns, task: Column) -> Outcome | None:
    known = _cloud_is_known(results)
    return randomly_offloaded(results, CAP, run.seed) if known else None


def _router(run: Run, results: Columns, task: Column) -> Outcome | None:
    validation = run.results("task_tuned", "validation")
    if task not in (OWN, TASKS[0]) or validation is None:
        return None
    validation = without_calls(validation)
    scores = [run.scores("validation", validation), run.scores("test", results)]
    if any(each is None for each in scores):
        return None
    seed = Seed(Workdir(run.folder), run.seed)
    return routed(seed, validation, results, *scores, CAP, attempt_first=False).outcome


# The rows on Task-Tuning Only's policy, which is not meant to call.
_ROUTED: Mapping[str, Callable[[Run, Columns, Column], Outcome | None]] = {
    "task_tuned": _alone,
    "naive": _naive,
    "router": _router,
}


def _cloud_is_known(results: Columns) -> bool:
    return bool((results.cloud_known | results.cloud_failed).all())


def _accuracy(run: Run, part: Part, row: str, column: Column, over_cap: OverCap) -> float | None:
    """Overall or conditional accuracy on a data set, or its mean over all of `TASKS`."""
    if column == AVERAGE:
        each = [_accuracy(run, part, row, task, over_cap) for task in TASKS]
        return None if None in each else float(np.mean(each))
    outcome = _outcome(run, row, column, over_cap)
    if outcome is None:
        return None
    of = overall_accuracy if part.measure == "overall" else conditional_accuracy
    found = of(outcome)
    return None if found is None else 100 * found.value


def _at_budget(run: Run, part: Part, row: str, column: Column, over_cap: OverCap) -> float | None:
    results = run.results("task_tuned" if row in _ROUTED else row)
    if results is None or not _cloud_is_known(results):
        return None
    results = without_calls(results)
    scores = run.scores("test", results) if row == "router" else results.p_call
    if scores is None or (row != "naive" and not np.isfinite(scores).all()):
        return None
    curve = random_curve(results) if row == "naive" else budget_curve(results, scores, run.seed)
    return 100 * float(curve.accuracy[column])  # the curve has a point per percent


def _tokens(run: Run, part: Part, row: str, column: Column, over_cap: OverCap) -> float | None:
    results = run.results("task_tuned" if column == "no offloading" else row)
    if results is None:
        return None
    kept = {"call": results.called, "solve": ~results.called}.get(column)
    tokens = results.device_tokens if kept is None else results.device_tokens[kept]
    return float(tokens.mean()) if tokens.size else None


def _swept(run: Run, part: Part, row: str, column: Column, over_cap: OverCap) -> float | None:
    """GAPG's validation prompts at a value; with rho, under the budget that it stands for."""
    budgets = part.measure == "rho"
    results = run.variant(part.measure, RHO[column] if budgets else column)
    if results is None:
        return None
    if row == "overall":
        cap = column / 100 if budgets else CAP
        return 100 * overall_accuracy(capped(results, cap, run.seed, over_cap)).value
    return 100 * {"local": local_accuracy, "call_ratio": call_ratio}[row](results).value


_MEASURES = {
    "overall": _accuracy,
    "conditional": _accuracy,
    "at_budget": _at_budget,
    "tokens": _tokens,
    **dict.fromkeys(SETTINGS, _swept),
}


# --- beside the paper's ---


@dataclass(frozen=True)
class Cell:
    """One number: the paper's, None where it shows none, and ours of each seed that has it."""

    experiment: str
    measure: str
    row: str
    column: Column
    paper: float | None
    ours: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Ours over seeds; None where no seed has the cell."""
        return mean_and_deviation(self.ours)[0] if self.ours else None

    @property
    def difference(self) -> float | None:
        """Ours - the paper's; None where either is missing."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper

    def as_json(self) -> dict[str, Any]:
        """For table and figure, as plain values."""
        deviation = mean_and_deviation(self.ours)[1] if self.ours else None
        derived = {"mean": self.mean, "deviation": deviation, "difference": self.difference}
        return {**vars(self), "ours": list(self.ours), **derived}


def cells_of(exhibit: Exhibit, workdir: Path, over_cap: OverCap = "wrong") -> list[list[Cell]]:
    """The cells of each part of an exhibit."""
    runs = {part.experiment: runs_of(workdir, part.experiment) for part in exhibit.parts}
    found = []
    for part in exhibit.parts:
        measure, cells = _MEASURES[part.measure], []
        for (row, column), paper in part.cells.items():
            each = [measure(run, part, row, column, over_cap) for run in runs[part.experiment]]
            ours = tuple(value for value in each if value is not None)
            cells.append(Cell(part.experiment, part.measure, row, column, paper, ours))
        found.append(cells)
    return found


def report(
    name: str, workdir: str | Path, console: rich.console.Console, over_cap: OverCap = "wrong"
) -> None:
    """Writes `<workdir>/paper/<name>.{md,tex,json}` and its figures, and prints the table.

    Args:
        name: of an exhibit in `PAPER`.
        workdir: holds a folder per experiment.
        console: what is printed on.
        over_cap: what becomes of a policy's own calls beyond the cap.

    Raises:
        ValueError: the workdir does not exist, or a file in it is damaged.
    """
    workdir, exhibit = Path(workdir).resolve(), PAPER[name]
    require(workdir.is_dir(), f"--workdir={workdir} does not exist; it holds the finished runs.")
    parts = cells_of(exhibit, workdir, over_cap)
    made = [_block(exhibit, cells, over_cap) for cells in parts]
    folder = workdir / "paper"
    folder.mkdir(exist_ok=True)
    text = f"# {exhibit.title}\n\n" + "\n".join(map(blocks.markdown, made))
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / f"{name}.tex").write_text("\n".join(map(blocks.latex, made)), encoding="utf-8")
    cells = [cell for part in parts for cell in part]
    plain = {"paper": name, "cap": CAP, "over_cap": over_cap}
    plain["cells"] = [cell.as_json() for cell in cells]
    as_text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
    (folder / f"{name}.json").write_text(as_text, encoding="utf-8")
    for part in parts:
        _draw(exhibit, part, folder / f"{name}.{part[0].experiment}.png")
    console.print(text, markup=False, highlight=False)
    there = sum(bool(cell.ours) for cell in cells)
    console.print(f"{there} of {len(cells)} cells have runs of ours; {name}.* are in {folder}")


_OVER_CAP = {
    "wrong": "a call beyond the cap is wrong",
    "device": "a call beyond the cap is taken back, and the device answers",
}


def _block(exhibit: Exhibit, cells: list[Cell], over_cap: OverCap) -> Block:
    one, signed = decimals(1), lambda x: ("+" if round(x, 1) > 0 else "") + decimals(1)(x)
    experiment, measure = EXPERIMENTS[cells[0].experiment], cells[0].measure
    body = []
    for cell in cells:
        ours = _written(cell.ours)
        paper = NO_MEANING if cell.paper is None else one(cell.paper)
        difference = NO_MEANING if cell.difference is None else signed(cell.difference)
        row = ROWS.get(cell.row, cell.row.replace("_", " "))
        body.append((f"{row}, {cell.column}", ours, paper, difference, str(len(cell.ours))))
    accuracy = f"{measure} accuracy; " if measure in ("overall", "conditional") else ""
    return Block(
        header=(f"{experiment}, {exhibit.columns}", "ours", "paper", "difference", "seeds"),
        body=tuple(body),
        caption=f"{exhibit.title}; {accuracy}{_OVER_CAP[over_cap]}. Ours: mean over seeds ±"
        f" sample standard deviation. –: missing. {exhibit.note}".rstrip(),
    )


def _written(ours: tuple[float, ...]) -> str:
    if not ours:
        return NO_MEANING
    mean, deviation = mean_and_deviation(ours)
    return decimals(1)(mean) + ("" if deviation is None else f" ± {decimals(1)(deviation)}")


def _draw(exhibit: Exhibit, cells: list[Cell], path: Path) -> None:
    """Ours beside the paper's: bars by row or column, or lines over the values of a setting."""
    if exhibit.figure is None:
        return
    unit = "tokens" if cells[0].measure == "tokens" else "percent"
    rows = list(dict.fromkeys(cell.row for cell in cells))
    if exhibit.figure == "bars":
        single = len(rows) == 1
        groups = [str(cell.column) if single else ROWS[cell.row] for cell in cells]
        lines = {"paper": _numbers(cells, "paper"), "ours": _numbers(cells, "ours")}
        figures.bars(groups, _not_empty(lines), "", unit, path)
        return
    lines = {}
    for row in rows:
        own = [cell for cell in cells if cell.row == row]
        named = ROWS.get(row, row.replace("_", " "))
        for whose in ("paper", "ours"):
            lines[f"{named}, {whose}"] = _numbers(own, whose)
    values = list(dict.fromkeys(cell.column for cell in cells))
    figures.sweep(values, _not_empty(lines), exhibit.columns, unit, path)


def _numbers(cells: list[Cell], whose: str) -> list[list[float]]:
    if whose == "ours":
        return [list(cell.ours) for cell in cells]
    return [[] if cell.paper is None else [cell.paper] for cell in cells]


def _not_empty(lines: dict[str, list[list[float]]]) -> dict[str, list[list[float]]]:
    return {name: numbers for name, numbers in lines.items() if any(numbers)}
