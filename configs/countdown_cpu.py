"""Countdown with a device LLM of 0.6 M parameters: the whole method on a CPU in ten minutes or so.

`configs/countdown_cpu.py:smoke` does every step of it, much smaller, as a health check.
"""

from ml_collections import ConfigDict


def get_config(size: str = "full") -> ConfigDict:
    """The experiment in full, or its `smoke` form."""
    config = ConfigDict()
    config.seed = 0
    config.keep_checkpoints = 2
    config.task = ConfigDict(
        {
            "name": "countdown",
            "train": 8000,
            "validation": 500,
            "test": 2000,
            "four": 0.3,  # share of prompts with four numbers, the others have three
            "numbers": (1, 25),
            "targets": (10, 99),
            "seed": 0,
        }
    )
    config.device = ConfigDict(
        {
            "vocabulary": 160,
            "width": 128,
            "layers": 4,
            "heads": 4,
            "kv_heads": 1,
            "head_size": 32,
            "mlp": 256,
            "rope_base": 10_000.0,
            "norm_epsilon": 1e-6,
            "tied_embeddings": True,
            "param_dtype": "float32",
            "compute_dtype": "float32",
            "remat": "full",
        }
    )
    config.cloud = ConfigDict({"kind": "oracle", "accuracy": 0.935, "seed": 0})
    config.sampling = ConfigDict(
        {
            "group": 8,
            "prompt_tokens": 12,
            "response_tokens": 128,
            "temperature": 1.0,
            "cache_tokens": 128,
            "shrink": 0.25,
        }
    )
    config.start = ConfigDict(
        {
            "steps": 2000,
            "batch": {"prompts": 16, "micro_prompts": 8, "length_buckets": 3},
            "optimizer": _optimizer(rate=3e-3, schedule="cosine", warmup_steps=50, b2=0.95),
            "traces": {"max_tokens": 128, "solve": 0.9, "impatience": 0.0, "near": 0},
            "late_steps": 500,
            "late_traces": {"max_tokens": 128, "solve": 0.9, "impatience": 0.3, "near": 30},
        }
    )
    config.learning = ConfigDict(
        {
            "steps": 120,
            "batch": {
                "prompts": 32,
                "micro_prompts": 8,
                "micro_group": 2,
                "length_buckets": 3,
            },
            "optimizer": _optimizer(rate=2e-4, schedule="cosine", warmup_steps=5),
            "objective": {"name": "gapg", "updates": 1, "clip": 0.2},
            "reward": {"answer": 1.0, "call": 0.3, "format": 0.0},
            "filter": {"enabled": True, "rho": 3 / 7, "solved": "any_correct"},
            "collapse_patience": 3,
        }
    )
    config.evaluation = ConfigDict(
        {"every": 20, "validation_prompts": 256, "test_prompts": 2000, "cap": 0.3, "batch": 256}
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "cpu_devices": 2})
    if size == "smoke":
        _shrink(config)
    elif size != "full":
        raise ValueError(f"configs/countdown_cpu.py takes 'full' or 'smoke', not {size!r}.")
    return config


def _optimizer(rate: float, schedule: str, warmup_steps: int, b2: float = 0.999) -> dict:
    return {
        "rate": rate,
        "schedule": schedule,
        "warmup_steps": warmup_steps,
        "clip": 1.0,
        "weight_decay": 0.0,
        "b1": 0.9,
        "b2": b2,
        "epsilon": 1e-8,
    }


def _shrink(config: ConfigDict) -> None:
    """Under a minute after compilation; too short to learn much.

    One response length: with so few steps a second one costs more to compile than it saves.
    """
    config.start.batch.length_buckets = config.learning.batch.length_buckets = 1
    config.task.update({"train": 500, "validation": 64, "test": 64})
    config.start.update({"steps": 60, "late_steps": 20})
    config.learning.steps = 4
    config.evaluation.update(
        {"every": 2, "validation_prompts": 64, "test_prompts": 64, "batch": 64}
    )
