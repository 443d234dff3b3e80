import subprocess
import sys

import numpy as np
import pytest

from offload_jax.evaluation.plots import plot_curves, series, smooth


def rows(n=30):
    for step in range(1, n + 1):
        share = step / n
        yield {"step": step, "stage": "supervised", "loss": 1.0}
        yield {
            "step": step,
            "stage": "gapg",
            "reward": share,
            "accuracy": share,
            "call_ratio": None if step == 3 else share,
            "d1": step,
            "d2": step // 2,
        }
        if step % 10 == 0:
            yield {"step": step, "stage": "gapg", "validation/overall": share}


def test_a_series_skips_rows_without_the_metric_and_nulls():
    steps, values = series(list(rows())[::-1], "call_ratio")
    assert steps.tolist() == [1, 2, *range(4, 31)]
    np.testing.assert_allclose(values, steps / 30)


def test_smoothing_averages_around_each_step_and_shrinks_at_the_ends():
    assert smooth(np.array([0.0, 3.0, 6.0, 0.0]), 3).tolist() == [1.5, 3.0, 3.0, 3.0]
    assert smooth(np.array([2.0, 5.0]), 1).tolist() == [2.0, 5.0]


def test_the_curves_are_drawn_even_for_an_odd_run(tmp_path):
    for name, some in (
        ("whole", list(rows())),
        ("one step", list(rows(1))),
        ("no validation", [r for r in rows() if "validation/overall" not in r]),
        ("no filter", [{"step": 1, "stage": "gapg", "reward": 0.5}]),
    ):
        plot_curves(some, tmp_path / f"{name}.png", cap=0.3)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_stage_without_metrics_is_refused():
    with pytest.raises(ValueError, match="'gapg'"):
        plot_curves([{"step": 1, "stage": "supervised"}], "unused.png")


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, offload_jax.evaluation.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
