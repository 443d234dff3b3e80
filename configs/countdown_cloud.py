"""Countdown as in configs/countdown_cpu.py, with an OpenAI-compatible endpoint as the cloud.

The key is in the environment variable OPENAI_API_KEY, any word for a server without keys. A
rehearsal on loopback: `python -m experiments.fake_cloud`, which this config asks by default.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(size: str = "full") -> ConfigDict:
    """The experiment in full, or its `smoke` form."""
    path = Path(__file__).with_name("countdown_cpu.py")
    spec = importlib.util.spec_from_file_location("countdown_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(size)
    config.cloud = ConfigDict(
        {
            "kind": "openai",
            "model": "fake",
            "base_url": "http://127.0.0.1:8008/v1",
            "max_tokens": 4096,
            "temperature": 0.0,
            "concurrency": 32,
            "deadline": 60.0,  # seconds for all attempts at a question
            "attempt_timeout": 30.0,
            "attempts": 4,
            "wait": 0.5,
            "ledger": placeholder(str),  # None: cloud.sqlite in the workdir
            # The most that a run may spend; 0.0 dollars would ask nobody, None is no limit.
            "budget": {"calls": 50_000, "tokens": 20_000_000, "dollars": 20.0},
            # Dollars per million tokens, where the package genai-prices does not know the model.
            "prices": {"input": 0.5, "output": 2.0},
        }
    )
    return config
