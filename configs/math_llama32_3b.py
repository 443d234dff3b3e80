"""The paper's MATH experiment with Llama-3.2-3B-Instruct, for a TPU v5e slice of 64 chips or more.

The model's shape is given here, so that the programs can be compiled without a checkpoint
(`python -m experiments.aot_compile --config=configs/math_llama32_3b.py --topology=v5e:8x8`). On
256 chips add `--config.mesh.tensor=4`: there are 128 prompts (see docs/scaling.md).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(form: str = "gapg") -> ConfigDict:
    """The experiment in a form (see configs/paper_forms.py)."""
    config = ConfigDict()
    config.seed = 0
    config.keep_checkpoints = 2
    config.task = ConfigDict({"name": "math"})
    config.device = ConfigDict(
        {
            "vocabulary": 128_256,
            "width": 3072,
            "layers": 28,
            "heads": 24,
            "kv_heads": 8,
            "head_size": 128,
            "mlp": 8192,
            "rope_base": 500_000.0,
            "rope_scaling": {
                "factor": 32.0,
                "low_frequency": 1.0,
                "high_frequency": 4.0,
                "context": 8192,
            },
            "norm_epsilon": 1e-5,
            "tied_embeddings": True,
            "context": 131_072,
            "param_dtype": "float32",
            "compute_dtype": "bfloat16",
            "remat": "full",
        }
    )
    config.sampling = ConfigDict(
        {
            "group": 8,
            "prompt_tokens": 1024,
            "response_tokens": 1024,
            "temperature": 1.0,
            "cache_tokens": 128,
            "shrink": 1.0,  # a step reads mostly weights: fewer rows would hardly shorten it
        }
    )
    config.learning = ConfigDict(
        {
            "steps": 800,
            # In 64 prompts some response is always long: one bucket.
            "batch": {"prompts": 128, "micro_prompts": 64, "length_buckets": 1},
            "optimizer": {"rate": 2e-6, "warmup_steps": 0, "clip": 1.0},
            "objective": {"name": "gapg", "updates": 1, "clip": 0.2},
            "reward": {"answer": 1.0, "call": 0.6, "format": 0.0},
            "filter": {"enabled": True, "rho": 3 / 7, "solved": "any_correct"},
        }
    )
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    forms = runpy.run_path(str(Path(__file__).with_name("paper_forms.py")))
    return forms["in_form"](config, form)
