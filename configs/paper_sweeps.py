"""The paper's sweeps with GAPG: α_c, G and the call budget; the filter's two rows are methods.

`:math_qwen25_15b` or `:math_llama32_3b`: that table, and its sweeps, in the same workdir as
`configs/<name>.py:table`, whose runs are not done again. `:smoke`: two values of α_c and of ρ.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

CALL_REWARDS = {
    "math_qwen25_15b": (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 1.0),
    "math_llama32_3b": (0.0, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 1.0),
}


def get_config(experiment: str = "math_qwen25_15b") -> ConfigDict:
    """The study of an experiment with its sweeps."""
    names = (*CALL_REWARDS, "smoke")
    if experiment not in names:
        raise ValueError(f"{Path(__file__).name} takes {', '.join(names)}, not {experiment!r}.")
    smoke = experiment == "smoke"
    model = "math_qwen25_15b" if smoke else experiment
    path = Path(__file__).with_name(f"{model}.py")
    config = runpy.run_path(str(path))["get_config"]("table_smoke" if smoke else "table")
    config.sweeps = ConfigDict(
        {
            "call_reward": _sweep("learning.reward.call", CALL_REWARDS[model]),
            "group": _sweep("sampling.group", (2, 4, 8, 16, 32)),
            # For call budgets of 20, 30, 40 and 50 %.
            "rho": _sweep("learning.filter.rho", (1 / 4, 3 / 7, 2 / 3, 1.0)),
        }
    )
    if smoke:  # without the sweep of G, which compiles most
        del config.sweeps.group
        for sweep in config.sweeps.values():
            sweep.at = sweep.at[1:3]
    return config


def _sweep(setting: str, at: tuple) -> dict:
    return {"setting": setting, "at": at, "methods": ("gapg",), "seeds": (0,)}
