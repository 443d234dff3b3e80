"""How a checkpoint is served (see docs/serving.md)."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Longest prompts and responses, in tokens, and what users ask.
_TASKS = {
    "countdown": (12, 128, {"name": "countdown", "numbers": (1, 25), "targets": (10, 99)}),
    "arithmetic": (128, 192, {"name": "arithmetic"}),
    "math": (1024, 1024, {"name": "math", "help": True}),
}


def get_config(form: str = "countdown,oracle") -> ConfigDict:
    """A task and a cloud: countdown, arithmetic or math; oracle, openai, device or replay."""
    task, _, cloud = form.partition(",")
    if task not in _TASKS or cloud not in _CLOUDS:
        raise ValueError(
            f"configs/serve.py takes TASK,CLOUD of {', '.join(_TASKS)} and {', '.join(_CLOUDS)},"
            f" not {form!r}."
        )
    config = ConfigDict()
    prompt_tokens, response_tokens, asked = _TASKS[task]
    config.task = ConfigDict(asked)
    config.sampling = ConfigDict(
        {"prompt_tokens": prompt_tokens, "response_tokens": response_tokens}
    )
    config.cloud = _CLOUDS[cloud]()
    config.model = placeholder(str)  # None: the name of the checkpoint's folder
    config.slots = 8  # attempts at once
    config.queue = 64  # questions that wait for one
    config.threshold = placeholder(float)  # P(call) above it is a call; None: the device decides
    config.threshold_file = placeholder(str)  # from experiments.calibrate
    config.patience = 120.0  # seconds that the cloud is waited for
    config.limits = ConfigDict(
        {
            "body_bytes": 2**18,
            "body_seconds": 30.0,
            "under_way": 256,
            "retry_after": 5,
            "keep_alive": 5.0,
        }
    )
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1, "cpu_devices": 1})
    return config


def _oracle() -> ConfigDict:
    """A solver: no network, no cost."""
    return ConfigDict({"kind": "oracle", "accuracy": 0.935, "seed": 0})


def _openai() -> ConfigDict:
    """Any OpenAI-compatible endpoint; the default is that of `experiments.fake_cloud`."""
    return ConfigDict(
        {
            "kind": "openai",
            "model": "fake",
            "base_url": "http://127.0.0.1:8008/v1",
            "key_variable": "OPENAI_API_KEY",
            "max_tokens": 4096,
            "temperature": 0.0,
            "concurrency": 32,
            "deadline": 60.0,
            "attempt_timeout": 30.0,
            "attempts": 3,
            "ledger": placeholder(str),  # None: cloud.sqlite in the workdir
            # The most that this workdir may ever spend; None is no limit.
            "budget": {"calls": 10_000, "tokens": 10_000_000, "dollars": 5.0},
            # Dollars per million tokens, where the package genai-prices does not know the model.
            "prices": {"input": 0.5, "output": 2.0},
        }
    )


def _device() -> ConfigDict:
    """A second checkpoint."""
    return ConfigDict({"kind": "device", "pretrained": "", "batch": 1, "dtype": "float32"})


def _replay() -> ConfigDict:
    """The answers in a ledger alone."""
    return ConfigDict(
        {
            "kind": "replay",
            "model": "fake",
            "ledger": "",
            "base_url": "http://127.0.0.1:8008/v1",
        }
    )


_CLOUDS = {"oracle": _oracle, "openai": _openai, "device": _device, "replay": _replay}
