"""How a checkpoint is evaluated on published data sets (see docs/math.md)."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(cloud: str = "oracle") -> ConfigDict:
    """The paper's lengths and cap. The cloud: an `oracle`, or `openai`, an endpoint."""
    if cloud not in ("oracle", "openai"):
        raise ValueError(f"configs/out_of_domain.py takes oracle or openai, not {cloud!r}.")
    config = ConfigDict()
    config.files = "data/math"
    config.sampling = ConfigDict({"group": 1, "prompt_tokens": 1024, "response_tokens": 1024})
    # An oracle gives the published answer, or a wrong one: 93.8 % is the paper's cloud over its
    # five test sets.
    config.cloud = ConfigDict({"kind": "oracle", "accuracy": 0.938, "seed": 0})
    if cloud == "openai":
        config.cloud = ConfigDict(
            {
                "kind": "openai",
                "model": "deepseek-reasoner",
                "base_url": "https://api.deepseek.com/v1",
                "key_variable": "OPENAI_API_KEY",
                "max_tokens": 16_384,
                # The most that it may spend.
                "budget": {"calls": 10_000, "tokens": 50_000_000, "dollars": 50.0},
            }
        )
    config.cap = 0.3
    config.batch = 32
    config.limit = placeholder(int)  # the first so many problems of each data set; None: all
    config.help = True
    config.ask_all = False
    config.seed = 0
    config.dtype = "float32"
    config.workers = 2
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "cpu_devices": 1})
    return config
