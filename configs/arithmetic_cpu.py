"""Long arithmetic with a device LLM of 0.6 M parameters: a task on which it cannot check itself.

On Countdown a search that misses the target says so; here a wrong step looks like a right one, and
whom to hand over must be told from the question. `:smoke` does every step of it.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def get_config(size: str = "full") -> ConfigDict:
    """The experiment in full, or its `smoke` form."""
    if size not in ("full", "smoke"):
        raise ValueError(f"configs/arithmetic_cpu.py takes full or smoke, not {size!r}.")
    config = _countdown(size)
    config.task = ConfigDict(
        {
            "name": "arithmetic",
            "train": config.task.train,
            "validation": config.task.validation,
            "test": config.task.test,
            "steps": (2, 3, 4, 6, 8, 10),
            "largest": 40,
            "factor": 4,
            "products": 0.15,
            "stories": 0.0,
            "seed": 0,
        }
    )
    config.device.vocabulary = 32
    config.sampling.update({"prompt_tokens": 48, "response_tokens": 144})
    del config.start.late_traces
    config.start.late_steps = 0
    config.start.traces = ConfigDict({"kind": "arithmetic", "solve": 0.7})
    config.start.batch.length_buckets = config.learning.batch.length_buckets = 2
    if size == "full":
        config.start.steps = 1500
    return config


def _countdown(size: str) -> ConfigDict:
    """configs/countdown_cpu.py, which need not be importable."""
    path = Path(__file__).with_name("countdown_cpu.py")
    spec = importlib.util.spec_from_file_location("countdown_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(size)
