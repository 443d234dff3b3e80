"""The paper's Countdown experiment with Qwen2.5-3B-Instruct, for a TPU v5e slice of 16 to 32 chips.

`:gapg`, `:task_tuned`, … `:table`, `:smoke`: see configs/paper_forms.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(form: str = "gapg") -> ConfigDict:
    """The experiment in a form."""
    here = Path(__file__)
    config = runpy.run_path(str(here.with_name("math_llama32_3b.py")))["get_config"]()
    config.task = ConfigDict({"name": "countdown"})
    config.device = ConfigDict(
        {
            "vocabulary": 151_936,
            "width": 2048,
            "layers": 36,
            "heads": 16,
            "kv_heads": 2,
            "head_size": 128,
            "mlp": 11_008,
            "rope_base": 1_000_000.0,
            "query_key_value_bias": True,
            "norm_epsilon": 1e-6,
            "tied_embeddings": True,
            "context": 32_768,
            "param_dtype": "float32",
            "compute_dtype": "bfloat16",
            "remat": "full",
        }
    )
    config.sampling.update({"prompt_tokens": 256, "response_tokens": 720, "cache_tokens": 120})
    config.learning.batch.update({"prompts": 32, "micro_prompts": 32})
    config.learning.optimizer.rate = 5e-6
    config.learning.reward.call = 0.25
    return runpy.run_path(str(here.with_name("paper_forms.py")))["in_form"](config, form)
