"""The course of a run as one picture, from the rows of its metrics.jsonl alone."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

# Okabe and Ito's palette: told apart under every common kind of colour blindness.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"

STYLE = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
}


def series(
    rows: Sequence[Mapping[str, Any]], name: str
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Steps and values of one metric, where a row has it and it is not null, by step."""
    points = sorted((row["step"], row[name]) for row in rows if row.get(name) is not None)
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, float), np.array(values, float)


def smooth(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Centred moving average over `window` values (made odd); at the ends, over those there are."""
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    low, high = np.maximum(i - half, 0), np.minimum(i + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def plot_curves(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    stage: str = "gapg",
    cap: float | None = None,
) -> None:
    """Draws reward, accuracy, call ratio and |D1|, |D2| over the steps of a stage as a PNG.

    Args:
        rows: rows of metrics.jsonl: `step`, `stage` and any of `reward`, `accuracy`,
            `call_ratio`, `d1`, `d2`, `validation/overall`, `validation/local`,
            `validation/call_ratio`; accuracies and ratios are shares.
        path: where the picture goes.
        stage: whose rows are drawn.
        cap: largest share of calls that is answered; a line in the panel of the call ratio.

    Raises ValueError where no row is of the stage.
    """
    rows = [row for row in rows if row.get("stage") == stage]
    if not rows:
        raise ValueError(f"there are no metrics of stage {stage!r} to plot")
    # Only here: a run without plots does not wait a second for matplotlib. The figure is made
    # without pyplot, so that no display is needed and no global state is left.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    window = smoothing_window(rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 7), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        panels = figure.subplots(2, 2)
        (reward, accuracy), (calls, kept) = panels
        _reward(reward, rows, window)
        _accuracy(accuracy, rows, window)
        _calls(calls, rows, window, cap)
        _kept(kept, rows, window)
        for axes in panels.flat:
            axes.margins(x=0.01)
            axes.set_xlabel("training step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if axes.get_legend_handles_labels()[0]:
                # Between title and panel, where no curve can run through it.
                legend = axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=3)
                legend.set_in_layout(False)
        if window > 1:
            note = f"Training batches: every step faint, the mean of {window} steps bold."
            figure.supxlabel(note, fontsize=9, color="#555555")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")


def smoothing_window(rows: Sequence[Mapping[str, Any]]) -> int:
    """An odd number of steps, about a fifteenth of the run: wide enough for one batch's noise."""
    return max(1, len(series(rows, "reward")[0]) // 15) | 1


def _title(axes, title: str, unit: str) -> None:
    axes.set_title(title, pad=24)
    axes.set_ylabel(unit)


def _noisy(axes, rows, name: str, window: int, colour: str, label: str, scale: float = 1) -> None:
    """A metric of the training batches: every step faint, its moving average on top."""
    steps, values = series(rows, name)
    if steps.size:
        axes.plot(steps, scale * values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, scale * smooth(values, window), color=colour, linewidth=2, label=label)


def _points(axes, rows, name: str, colour: str, marker: str, label: str) -> None:
    """A metric of the evaluations, in percent."""
    steps, values = series(rows, name)
    if steps.size:
        axes.plot(
            steps,
            100 * values,
            color=colour,
            marker=marker,
            markersize=6,
            markeredgecolor="white",
            linewidth=1.2,
            label=label,
        )


def _reward(axes, rows, window: int) -> None:
    _title(axes, "Reward", "mean reward per response")
    _noisy(axes, rows, "reward", window, BLUE, "training")


def _accuracy(axes, rows, window: int) -> None:
    _title(axes, "Accuracy", "correct (%)")
    _noisy(axes, rows, "accuracy", window, BLUE, "training, device", scale=100)
    _points(axes, rows, "validation/local", GREEN, "s", "validation, device")
    _points(axes, rows, "validation/overall", ORANGE, "o", "validation, with cloud")
    axes.set_ylim(bottom=0)


def _calls(axes, rows, window: int, cap: float | None) -> None:
    _title(axes, "Call ratio", "responses that call (%)")
    _noisy(axes, rows, "call_ratio", window, BLUE, "training", scale=100)
    _points(axes, rows, "validation/call_ratio", ORANGE, "o", "validation")
    if cap is not None:
        axes.axhline(100 * cap, color=GREY, linestyle="--", linewidth=1.2, label="cap")
    axes.set_ylim(bottom=0)


def _kept(axes, rows, window: int) -> None:
    _title(axes, "Prompts kept by the filter", "prompts per batch")
    _noisy(axes, rows, "d1", window, BLUE, "|D1|: the device solves it")
    _noisy(axes, rows, "d2", window, ORANGE, "|D2|: only the cloud does")
    axes.set_ylim(bottom=0)
