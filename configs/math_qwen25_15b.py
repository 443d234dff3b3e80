"""The paper's MATH experiment with Qwen2.5-1.5B-Instruct, for a TPU v5e slice of 16 chips or more.

As configs/math_llama32_3b.py otherwise.
"""

import importlib.util
import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(form: str = "gapg") -> ConfigDict:
    """The experiment in a form (see configs/paper_forms.py)."""
    path = Path(__file__).with_name("math_llama32_3b.py")
    spec = importlib.util.spec_from_file_location("math_llama32_3b", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.device = ConfigDict(
        {
            "vocabulary": 151_936,
            "width": 1536,
            "layers": 28,
            "heads": 12,
            "kv_heads": 2,
            "head_size": 128,
            "mlp": 8960,
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
    config.learning.batch.micro_prompts = 16
    config.learning.reward.call = 0.3
    forms = runpy.run_path(str(path.with_name("paper_forms.py")))
    return forms["in_form"](config, form)
