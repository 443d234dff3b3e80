"""Several methods in one picture: training curves, budgets, sweeps, bars, from plain numbers.

Each function writes one PNG and nothing else. Methods differ by colour, marker and line style (or
hatching), in the order given, so that a picture can also be read in grey.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from offload_jax.evaluation.budgets import Curve
from offload_jax.evaluation.metrics import Estimate
from offload_jax.evaluation.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    STYLE,
    series,
    smooth,
    smoothing_window,
)

# The rest of Okabe and Ito's palette, whose yellow is too pale for a line on white.
_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#222222")
# As many markers as lines or colours would make the eighth method look like the first.
_MARKERS = "osD^v<"
_LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---")
_BOUNDS = {"random": ":", "oracle": "--"}  # by a name's first word: bounds, not methods
_NOTE = {"fontsize": 9, "color": "#555555"}


def training_curves(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    path: str | os.PathLike,
    cap: float | None = None,
) -> None:
    """Draws reward, device accuracy, call ratio and validation accuracy of several methods.

    Args:
        runs: per method, per seed, the rows of metrics.jsonl: `step`, `stage` and any of `reward`,
            `accuracy`, `call_ratio`, `validation/overall` (shares). The stage drawn is the one
            that has rewards.
        path: where the picture goes.
        cap: largest share of calls that is answered; a line in the panel of the call ratio.

    Raises ValueError where there is no method, or a run has not exactly one stage with rewards.
    """
    _check_methods(runs)
    rewarded = {
        name: [_rewarded(rows, f"{name}, run {i + 1}") for i, rows in enumerate(seeds)]
        for name, seeds in runs.items()
    }
    window = max(smoothing_window(rows) for seeds in rewarded.values() for rows in seeds)
    panels = (
        ("Reward", "mean reward per response", "reward", 1, window),
        ("Device accuracy", "training responses (%)", "accuracy", 100, window),
        ("Call ratio", "training responses that call (%)", "call_ratio", 100, window),
        ("Overall accuracy", "validation prompts, with cloud (%)", "validation/overall", 100, 1),
    )
    with _figure(path, (11, 8)) as figure:
        for axes, (title, unit, metric, scale, width) in zip(
            figure.subplots(2, 2).flat, panels, strict=True
        ):
            axes.set_title(title)
            axes.set_ylabel(unit)
            axes.set_xlabel("training step")
            axes.margins(x=0.01)
            for i, seeds in enumerate(rewarded.values()):
                _training_lines(axes, [series(rows, metric) for rows in seeds], scale, width, i)
            if metric == "call_ratio" and cap is not None:
                axes.axhline(100 * cap, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)))
                axes.annotate(
                    "cap", (1, 100 * cap), xycoords=("axes fraction", "data"),
                    xytext=(-2, 2), textcoords="offset points", ha="right", **_NOTE,
                )  # fmt: skip
            if metric != "reward":
                axes.set_ylim(bottom=0)
        # Drawn apart from the panels: a method may have no data in some of them.
        handles = [_handle(i, name) for i, name in enumerate(runs)]
        _legend_below(figure, handles)
        smoothed = f"; training metrics are means of {window} steps" if window > 1 else ""
        figure.suptitle(
            f"Thin: each seed; bold: the mean over seeds{smoothed}.", x=0.01, ha="left", **_NOTE
        )


def budget_curves(
    curves: Mapping[str, Sequence[Curve]],
    points: Mapping[str, tuple[float, float]],
    path: str | os.PathLike,
) -> None:
    """Draws overall accuracy against the share of prompts offloaded, 0 to 100 %.

    Args:
        curves: per method, one curve per seed, on the same budgets. The mean is drawn, with a band
            of one sample standard deviation. "random" and "oracle", however capitalised, are drawn
            as bounds, in grey.
        points: per method, (offloaded, overall) as shares: where its own decisions put it. In the
            colour of the method's curve, where it has one.
        path: where the picture goes.

    Raises ValueError where there is no curve, or the curves of one method differ in budgets.
    """
    _check_methods(curves)
    methods = [name for name in {**curves, **points} if name.lower().split()[0] not in _BOUNDS]
    style = {name: i for i, name in enumerate(methods)}
    with _figure(path, (8, 6.5)) as figure:
        axes = figure.subplots()
        for name, seeds in curves.items():
            budgets = np.asarray(seeds[0].budgets, float)
            if any(not np.array_equal(curve.budgets, budgets) for curve in seeds):
                raise ValueError(f"the curves of {name} must have the same budgets for all seeds")
            accuracy = 100 * np.array([curve.accuracy for curve in seeds], float)
            _budget_line(axes, name, 100 * budgets, accuracy, style.get(name))
        for name, (offloaded, overall) in points.items():
            i, alone = style.get(name), name not in curves
            axes.plot(
                100 * offloaded,
                100 * overall,
                linestyle="none",
                marker=_look(i)["marker"] if alone and i is not None else "*",
                color=GREY if i is None else _look(i)["color"],
                markersize=9 if alone and i is not None else 16,
                markeredgecolor="black",
                markeredgewidth=0.8,
                label=name if alone else None,
                zorder=5,
            )
        axes.set(xlim=(-1.5, 101.5), xlabel="prompts offloaded (%)", ylabel="overall accuracy (%)")
        axes.set_title("Accuracy against call budget")
        _legend_below(figure, axes.get_legend_handles_labels()[0])
        notes = ["Bands: one standard deviation over seeds."] if _several(curves) else []
        if points.keys() & curves.keys():
            notes.append("Stars: the method's own decisions.")
        if notes:
            figure.suptitle(" ".join(notes), x=0.01, ha="left", **_NOTE)


def sweep(
    values: Sequence[Any],
    measured: Mapping[str, Sequence[Sequence[float]]],
    x_label: str,
    y_label: str,
    path: str | os.PathLike,
) -> None:
    """Draws what was measured at each value of one setting.

    Args:
        values: the setting's values, as numbers (a logarithmic axis where they span a factor of
            more than ten), or with anything else among them as words (evenly spaced).
        measured: per line, per value, one number per seed, in the unit of `y_label`. The mean is
            drawn with its sample standard deviation, and each seed as a faint dot; a value
            without any number is left out.
        x_label: the setting.
        y_label: what was measured, with its unit.
        path: where the picture goes.

    Raises ValueError where a line has not one entry per value, or holds no number at all.
    """
    _check_measured(values, measured)
    words = not all(map(_is_number, values))
    x = np.arange(len(values)) if words else np.array(values, float)
    with _figure(path, (7, 5)) as figure:
        axes = figure.subplots()
        for i, (name, cells) in enumerate(measured.items()):
            _sweep_line(axes, name, x, cells, i)
        if not words and x.min() > 0 and x.max() / x.min() > 10:
            axes.set_xscale("log")
        axes.set_xticks(x, list(map(written, values)))
        axes.set_xticks([], minor=True)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _finish_measured(figure, axes, measured)


def written(value: Any) -> str:
    """A setting's value in a table or on an axis."""
    return f"{value:g}" if _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def bars(
    groups: Sequence[str],
    measured: Mapping[str, Sequence[Sequence[float]]],
    x_label: str,
    y_label: str,
    path: str | os.PathLike,
) -> None:
    """Draws groups of bars from zero: one bar per group and series.

    Args:
        groups: what stands below each group of bars.
        measured: per series, per group, one number per seed, in the unit of `y_label`. The mean is
            the bar, the sample standard deviation its whisker, each seed a dot; a group without
            any number has no bar.
        x_label: what the groups are; may be empty.
        y_label: what was measured, with its unit.
        path: where the picture goes.

    Raises ValueError where a series has not one entry per group, or holds no number at all.
    """
    _check_measured(groups, measured)
    width = 0.8 / len(measured)
    with _figure(path, (max(6.0, 1.5 + 0.55 * len(groups) * len(measured)), 4.8)) as figure:
        axes = figure.subplots()
        for i, (name, cells) in enumerate(measured.items()):
            x = np.arange(len(groups)) + width * (i - (len(measured) - 1) / 2)
            _bar_series(axes, name, x, cells, i, width)
        axes.set_xticks(np.arange(len(groups)), groups)
        axes.grid(False, axis="x")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(y=0.1)
        _finish_measured(figure, axes, measured)


def differences(
    measured: Mapping[str, Mapping[str, Estimate]], path: str | os.PathLike, x_label: str = ""
) -> None:
    """Draws differences with their intervals, one line of the sheet per place.

    Args:
        measured: per rival, per place, a difference of shares, positive where the rival is behind.
        path: where the picture goes.
        x_label: what the axis shows, in points.

    Raises ValueError where there is nothing to draw.
    """
    _check_methods(measured)
    places = list(dict.fromkeys(place for cells in measured.values() for place in cells))
    with _figure(path, (8, 1.6 + 0.45 * len(places))) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=GREY, linewidth=1.2)
        for i, (name, cells) in enumerate(measured.items()):
            y = np.array([places.index(place) for place in cells], float)
            y += 0.5 / len(measured) * (i - (len(measured) - 1) / 2)
            value, low, high = (
                100 * np.array([getattr(cell, end) for cell in cells.values()])
                for end in ("value", "low", "high")
            )
            axes.errorbar(
                value, y, xerr=(value - low, high - value), label=name, capsize=3,
                elinewidth=1.4, **{**_look(i), "linestyle": "none"},
            )  # fmt: skip
        axes.set_yticks(range(len(places)), places)
        axes.set_ylim(len(places) - 0.5, -0.5)  # from the top down
        axes.grid(False, axis="y")
        axes.set_xlabel(x_label)
        _legend_below(figure, axes.get_legend_handles_labels()[0])


# --- checks ---


def _check_methods(methods: Mapping[str, Sequence[Any]]) -> None:
    if not methods:
        raise ValueError("there is no method to draw")
    for name, seeds in methods.items():
        if not len(seeds):
            raise ValueError(f"there is no run of {name} to draw")


def _check_measured(places: Sequence[Any], measured: Mapping[str, Sequence[Sequence[float]]]):
    if not measured:
        raise ValueError("there is nothing measured to draw")
    for name, cells in measured.items():
        if len(cells) != len(places):
            raise ValueError(
                f"{name} needs one list of numbers for each of {len(places)} values, "
                f"not {len(cells)}"
            )
        if not any(map(len, cells)):
            raise ValueError(f"{name} has no number to draw")


def _rewarded(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The rows of the one stage that has rewards."""
    stages = {row.get("stage") for row in rows if row.get("reward") is not None}
    if len(stages) != 1:
        named = ", ".join(sorted(map(str, stages))) or "none"
        raise ValueError(f"{name} needs metrics of one stage with rewards, found: {named}")
    return [row for row in rows if row.get("stage") in stages]


def _several(methods: Mapping[str, Sequence[Any]]) -> bool:
    return any(len(seeds) > 1 for seeds in methods.values())


# --- lines and bars ---


def _look(i: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "linestyle": _LINES[i % len(_LINES)],
        "markeredgecolor": "white",
        "markersize": 7,
        "linewidth": 2,
    }


def _handle(i: int, name: str):
    from matplotlib.lines import Line2D

    return Line2D([], [], label=name, **_look(i))


def _training_lines(axes, runs, scale: float, window: int, i: int) -> None:
    """Thin lines of the seeds, and their mean at the steps that all of them have."""
    runs = [(steps, scale * smooth(values, window)) for steps, values in runs if steps.size]
    if not runs:
        return
    if len(runs) > 1:
        for steps, values in runs:
            axes.plot(steps, values, color=_look(i)["color"], alpha=0.35, linewidth=0.8)
    common = sorted(set.intersection(*(set(steps) for steps, _ in runs)))
    mean = np.mean([[dict(zip(*run, strict=True))[s] for s in common] for run in runs], axis=0)
    # Shifted from method to method, so that the markers of equal curves do not hide each other.
    spacing = max(1, len(common) // 6)
    axes.plot(common, mean, markevery=((i * spacing) // 5 % spacing, spacing), **_look(i))


def _budget_line(
    axes, name: str, budgets: Float[np.ndarray, " b"], accuracy: Float[np.ndarray, "s b"], i
) -> None:
    mean = accuracy.mean(0)
    if i is None:
        line = _BOUNDS[name.lower().split()[0]]
        axes.plot(budgets, mean, color=GREY, linestyle=line, linewidth=1.8, label=name, zorder=1.5)
        return
    # Shifted from method to method, so that the markers of equal curves do not hide each other.
    spacing = max(1, len(budgets) // 8)
    markers = ((i * spacing) // 5 % spacing, spacing)
    axes.plot(budgets, mean, label=name, markevery=markers, **_look(i))
    if len(accuracy) > 1:
        spread = accuracy.std(0, ddof=1)
        colour = _look(i)["color"]
        axes.fill_between(budgets, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)


def _means(cells: Sequence[Sequence[float]]):
    """Mean and sample standard deviation (0 for a single seed) of each cell, as two arrays."""
    mean = np.array([np.mean(cell) for cell in cells])
    return mean, np.array([np.std(cell, ddof=1) if len(cell) > 1 else 0.0 for cell in cells])


def _sweep_line(axes, name: str, x: Float[np.ndarray, " n"], cells, i: int) -> None:
    kept = [j for j, cell in enumerate(cells) if len(cell)]
    mean, deviation = _means([cells[j] for j in kept])
    axes.errorbar(x[kept], mean, yerr=deviation, label=name, capsize=3, elinewidth=1.2, **_look(i))
    for j in kept:
        if len(cells[j]) > 1:
            at = np.full(len(cells[j]), x[j])
            axes.plot(at, cells[j], "o", color=_look(i)["color"], alpha=0.35, markersize=3.5)


def _bar_series(axes, name: str, x, cells, i: int, width: float) -> None:
    kept = [j for j, cell in enumerate(cells) if len(cell)]
    mean, deviation = _means([cells[j] for j in kept])
    decimals = 1 if mean.max() >= 10 else 2
    axes.bar(
        x[kept],
        mean,
        0.92 * width,
        color=_COLOURS[i % len(_COLOURS)],
        hatch=_HATCHES[i % len(_HATCHES)],
        edgecolor="white",
        linewidth=0,
        label=name,
    )
    for j, height, spread in zip(kept, mean, deviation, strict=True):
        top = height
        if len(cells[j]) > 1:
            axes.errorbar(x[j], height, yerr=spread, color="#333333", capsize=3, elinewidth=1.2)
            at = x[j] + width * np.linspace(-0.15, 0.15, len(cells[j]))
            axes.plot(at, cells[j], "o", color="white", mec="#333333", mew=0.8, markersize=4)
            top = max(height + spread, *cells[j])
        axes.annotate(
            f"{height:.{decimals}f}", (x[j], top), xytext=(0, 5), textcoords="offset points",
            ha="center", fontsize=8, color="#333333",
        )  # fmt: skip


# --- the sheet ---


@contextlib.contextmanager
def _figure(path: str | os.PathLike, size: tuple[float, float]) -> Iterator[Any]:
    """A figure in the house's style, written to `path` when its drawing is done."""
    # As in plots.py: matplotlib only to draw, and without pyplot.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "legend.handlelength": 3.2, "hatch.linewidth": 0.8}):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        yield figure
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")


def _legend_below(figure, handles) -> None:
    """Outside of the panels, where no curve can run through it, in rows that fit the width."""
    longest = max(len(handle.get_label()) for handle in handles)
    across = int(figure.get_size_inches()[0] / (0.7 + 0.075 * longest))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=max(1, min(len(handles), across))
    )


def _finish_measured(figure, axes, measured: Mapping[str, Sequence[Sequence[float]]]) -> None:
    if len(measured) > 1:
        _legend_below(figure, axes.get_legend_handles_labels()[0])
    if any(len(cell) > 1 for cells in measured.values() for cell in cells):
        note = "Mean over seeds, with one standard deviation; dots: each seed."
        figure.suptitle(note, x=0.01, ha="left", **_NOTE)
