import subprocess
import sys

import matplotlib.axes
import matplotlib.image
import numpy as np
import pytest

from offload_jax.evaluation.budgets import Curve
from offload_jax.evaluation.figures import (
    bars,
    budget_curves,
    differences,
    sweep,
    training_curves,
)
from offload_jax.evaluation.metrics import Estimate


@pytest.fixture
def drawn(monkeypatch):
    """The lines that are drawn, as (label, x, y)."""
    lines, plot = [], matplotlib.axes.Axes.plot

    def spy(axes, *args, **kwargs):
        made = plot(axes, *args, **kwargs)
        lines.extend(
            (line.get_label(), np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
            for line in made
        )
        return made

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", spy)
    return lines


def labelled(lines, label):
    return [(x.tolist(), y.tolist()) for name, x, y in lines if name == label]


def assert_picture(path):
    pixels = matplotlib.image.imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 300
    assert 0.005 < (pixels.mean(-1) < 0.9).mean() < 0.5  # neither empty nor a blot


def run(level, steps=12, first=1):
    yield {"step": 1, "stage": "supervised", "loss": 1.0, "accuracy": 0.9}
    for step in range(first, steps + 1):
        yield {
            "step": step,
            "stage": "gapg",
            "reward": level,
            "accuracy": level,
            "call_ratio": None if step == 3 else level,
        }
        if step % 4 == 0:
            yield {"step": step, "stage": "gapg", "validation/overall": level}


def test_training_curves_show_each_seed_and_the_mean_where_all_seeds_have_one(tmp_path, drawn):
    runs = {
        "GAPG": [list(run(0.25)), list(run(0.75, first=5))],
        "no validation": [[r for r in run(0.5) if "validation/overall" not in r]],
    }
    path = tmp_path / "new" / "training.png"
    training_curves(runs, path, cap=0.3)
    assert_picture(path)
    levels = [(len(x), *set(y.tolist())) for _, x, y in drawn]
    # Reward, then accuracy, call ratio and validation in percent; thin, thin, mean, other method.
    assert levels[:4] == [(12, 0.25), (8, 0.75), (8, 0.5), (12, 0.5)]
    assert levels[4:8] == [(12, 25), (8, 75), (8, 50), (12, 50)]
    assert levels[8:12] == [(11, 25), (8, 75), (8, 50), (11, 50)]
    assert levels[12:] == [(3, 25), (2, 75), (2, 50)]


def test_budget_curves_show_the_mean_over_seeds_in_percent(tmp_path, drawn):
    budgets = np.array([0.0, 0.5, 1.0])
    seeds = [Curve(budgets, np.array([0.4, 0.7, 0.9])), Curve(budgets, np.array([0.5, 0.9, 0.9]))]
    line = Curve(budgets, np.array([0.45, 0.675, 0.9]))
    path = tmp_path / "budgets.png"
    points = {"GAPG": (0.3, 0.75), "GAPG at 50 %": (0.5, 0.85)}
    budget_curves({"Random": [line], "GAPG": seeds, "oracle": [line]}, points, path)
    assert_picture(path)
    [(x, y)] = labelled(drawn, "GAPG")
    assert x == [0, 50, 100]
    assert y == pytest.approx([45, 80, 90])
    assert labelled(drawn, "GAPG at 50 %") == [([50], [85])]
    assert len(labelled(drawn, "Random")) == len(labelled(drawn, "oracle")) == 1


@pytest.mark.parametrize(
    "values", [[0, 0.5, 1], [1e-4, 1e-3, 1e-2], ["on", "off", "half"], [None, 2.0, True]]
)
def test_a_sweep_is_drawn_over_numbers_and_words(tmp_path, values):
    path = tmp_path / "sweep.png"
    sweep(values, {"GAPG": [[70, 72], [75], [71, 74]], "rival": [[60], [], [62]]}, "x", "y", path)
    assert_picture(path)


def test_a_sweep_shows_every_seed(tmp_path, drawn):
    sweep([2, 4], {"GAPG": [[70.0, 72.0], [75.0]]}, "G", "accuracy (%)", tmp_path / "sweep.png")
    # errorbar draws its mean line without `plot`; a single seed is that line itself.
    assert [(x.tolist(), y.tolist()) for _, x, y in drawn] == [([2, 2], [70, 72])]


def test_bars_are_the_means(tmp_path, monkeypatch):
    heights, bar = [], matplotlib.axes.Axes.bar

    def spy(axes, x, height, *args, **kwargs):
        heights.append(list(height))
        return bar(axes, x, height, *args, **kwargs)

    monkeypatch.setattr(matplotlib.axes.Axes, "bar", spy)
    path = tmp_path / "bars.png"
    measured = {"with filter": [[10, 20], [50]], "without filter": [[], [60, 80]]}
    bars(["easy", "hard"], measured, "", "calls (%)", path)
    assert_picture(path)
    assert heights == [[15, 50], [70]]


def test_a_point_needs_no_curve_and_a_bound_may_be_one(tmp_path, drawn):
    line = Curve(np.array([0.0, 1.0]), np.array([0.5, 0.9]))
    path = tmp_path / "budgets.png"
    budget_curves({"oracle": [line]}, {"random": (0.3, 0.6), "GAPG": (0.3, 0.8)}, path)
    assert_picture(path)
    assert labelled(drawn, "random") == [([30], [60])]
    assert labelled(drawn, "GAPG") == [([30], [80])]


def test_eight_methods_all_look_different(tmp_path, monkeypatch):
    looks, plot = [], matplotlib.axes.Axes.plot

    def spy(axes, *args, **kwargs):
        looks.append((kwargs["color"], kwargs["marker"], kwargs["linestyle"]))
        return plot(axes, *args, **kwargs)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", spy)
    line = Curve(np.array([0.0, 1.0]), np.array([0.5, 0.9]))
    budget_curves({f"method {i}": [line] for i in range(8)}, {}, tmp_path / "budgets.png")
    assert len(set(looks)) == 8


def test_differences_are_drawn_in_points_with_their_intervals(tmp_path, monkeypatch):
    seen = {}

    def errorbar(self, x, y, xerr, label, **_):
        seen[label] = (list(x), np.array(xerr).tolist())
        return original(self, x, y, xerr=xerr, label=label, **_)

    original = matplotlib.axes.Axes.errorbar
    monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", errorbar)
    measured = {
        "one": {"here": Estimate(0.25, 0.125, 0.5), "there": Estimate(-0.5, -0.75, 0.0)},
        "two": {"there": Estimate(0.0, -0.25, 0.25)},
    }
    differences(measured, tmp_path / "d.png", "points")
    assert_picture(tmp_path / "d.png")
    assert seen == {
        "one": ([25.0, -50.0], [[12.5, 25.0], [25.0, 50.0]]),
        "two": ([0.0], [[25.0], [25.0]]),
    }


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no method"):
        training_curves({}, "unused.png")
    with pytest.raises(ValueError, match="no run of GAPG"):
        budget_curves({"GAPG": []}, {}, "unused.png")
    with pytest.raises(ValueError, match=r"GAPG, run 1 needs .* found: none"):
        training_curves({"GAPG": [[{"step": 1, "stage": "supervised", "loss": 1}]]}, "unused.png")
    with pytest.raises(ValueError, match="found: gapg, grpo"):
        two = [{"step": 1, "stage": stage, "reward": 1} for stage in ("gapg", "grpo")]
        training_curves({"GAPG": [two]}, "unused.png")
    curves = [Curve(np.linspace(0, 1, n), np.zeros(n)) for n in (2, 3)]
    with pytest.raises(ValueError, match="GAPG must have the same budgets"):
        budget_curves({"GAPG": curves}, {}, "unused.png")
    for draw in (sweep, bars):
        with pytest.raises(ValueError, match="nothing measured"):
            draw(["a"], {}, "x", "y", "unused.png")
        with pytest.raises(ValueError, match="GAPG needs one list of numbers for each of 2"):
            draw(["a", "b"], {"GAPG": [[1]]}, "x", "y", "unused.png")
        with pytest.raises(ValueError, match="GAPG has no number"):
            draw(["a", "b"], {"GAPG": [[], []]}, "x", "y", "unused.png")


def test_a_figure_that_fails_leaves_no_file(tmp_path):
    path = tmp_path / "budgets.png"
    curves = [Curve(np.linspace(0, 1, n), np.zeros(n)) for n in (2, 3)]
    with pytest.raises(ValueError):
        budget_curves({"GAPG": curves}, {}, path)
    assert not path.exists()


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, offload_jax.evaluation.figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
