"""Recall with a device LLM of 1 M parameters: a task on which what it cannot tell is a setting.

Facts that it was taught right, taught wrong, or taught as a blank; only a blank it can notice.
`:smoke` does every step of it.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def get_config(size: str = "full") -> ConfigDict:
    """The experiment in full, or its `smoke` form."""
    if size not in ("full", "smoke"):
        raise ValueError(f"configs/recall_cpu.py takes full or smoke, not {size!r}.")
    config = _countdown(size)
    full = size == "full"
    config.task = ConfigDict(
        {
            "name": "recall",
            "train": 2000 if full else 500,
            "validation": config.task.validation,
            "test": 1000 if full else config.task.test,
            "known": 0.35,
            "mistaken": 0.35,
            "seed": 0,
        }
    )
    # A token per fact and 29 others, rounded up.
    config.device.vocabulary = 3552 if full else 704
    config.sampling.update({"prompt_tokens": 3, "response_tokens": 10, "cache_tokens": 10})
    del config.start.late_traces
    config.start.late_steps = 0
    config.start.traces = ConfigDict({"kind": "recall", "solve": 0.7})
    # Responses are so short that all fit at once.
    config.start.batch.update({"prompts": 64, "micro_prompts": 64, "length_buckets": 1})
    whole = {"micro_prompts": config.learning.batch.prompts, "micro_group": None}
    config.learning.batch.update({**whole, "length_buckets": 1})
    config.learning.reward.call = 0.6
    config.learning.optimizer.rate = 1e-3  # at 2e-4, 60 steps do not teach it what a blank is
    if full:
        config.evaluation.test_prompts = config.task.test
        config.learning.steps = 60
        config.start.steps = 1000
    return config


def _countdown(size: str) -> ConfigDict:
    """configs/countdown_cpu.py, which need not be importable."""
    path = Path(__file__).with_name("countdown_cpu.py")
    spec = importlib.util.spec_from_file_location("countdown_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(size)
