"""The smallest experiment that still is one: seconds, not minutes."""

import dataclasses
import importlib.util
from pathlib import Path

from offload_jax.tasks import make_task
from offload_jax.training.experiment import Experiment, from_config

CONFIG = Path(__file__).parents[2] / "configs" / "countdown_cpu.py"


def smoke_config():
    spec = importlib.util.spec_from_file_location("countdown_cpu", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("smoke")


OVERRIDES = {
    "task.train": 40, "task.validation": 8, "task.test": 8,
    "device.width": 16, "device.layers": 1, "device.heads": 2, "device.kv_heads": 1,
    "device.head_size": 8, "device.mlp": 16,
    "sampling.response_tokens": 48, "sampling.group": 2, "sampling.cache_tokens": 48,
    "start.steps": 4, "start.late_steps": 2,
    "start.traces.max_tokens": 48, "start.late_traces.max_tokens": 48,
    "start.batch.prompts": 8, "start.batch.micro_prompts": 8, "start.batch.length_buckets": 1,
    "learning.steps": 4, "learning.batch.prompts": 8, "learning.batch.micro_prompts": 8,
    "learning.batch.length_buckets": 1, "learning.filter.enabled": False,
    "evaluation.every": 2, "evaluation.validation_prompts": 8, "evaluation.test_prompts": 8,
    "evaluation.batch": 8,
}  # fmt: skip


def tiny_config():
    config = smoke_config()
    config.update_from_flattened_dict(OVERRIDES)
    return config


def tiny_experiment() -> Experiment:
    return from_config(tiny_config())


def tiny_task(experiment: Experiment, folder):
    settings = dataclasses.asdict(experiment.task)
    return make_task(settings.pop("name"), folder, **settings)


def tiny_flags() -> list[str]:
    return [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
