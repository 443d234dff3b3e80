"""The workload that speed is measured on: SmolLM2-135M's geometry with random weights."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """8 prompts of 128 tokens, 8 responses of 64 to each."""
    return ConfigDict(
        {
            "device": {
                "vocabulary": 49_152,
                "width": 576,
                "layers": 30,
                "heads": 9,
                "kv_heads": 3,
                "head_size": 64,
                "mlp": 1536,
                "tied_embeddings": True,
                "param_dtype": "float32",
                "compute_dtype": "float32",
                "remat": "dots",
            },
            "sampling": {
                "group": 8,
                "prompt_tokens": 128,
                "response_tokens": 64,
                "temperature": 1.0,
                "cache_tokens": 64,
                "shrink": 0.75,
            },
            "batch": {"prompts": 8, "micro_prompts": 2, "length_buckets": 1},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "cpu_devices": 1},
        }
    )
