"""What shapes the device LLM."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from offload_jax.settings import require

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """A Llama-style decoder (RMSNorm, RoPE, grouped-query attention, SwiGLU)."""

    vocabulary: int  # V, at least the tokenizer's size
    width: int  # D
    layers: int  # L
    heads: int  # H, query heads
    kv_heads: int  # K, key/value heads, a divisor of H
    head_size: int  # N, even; independent of the width
    mlp: int  # F, hidden size of the MLP
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    tied_embeddings: bool = True
    param_dtype: Dtype = "float32"
    compute_dtype: Dtype = "float32"  # norms, softmax and log-probs are always float32
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes

    def __post_init__(self):
        for name in ("vocabulary", "width", "layers", "heads", "kv_heads", "head_size", "mlp"):
            require(getattr(self, name) >= 1, f"config.device.{name} must be at least 1.")
        require(
            self.heads % self.kv_heads == 0,
            f"config.device.heads ({self.heads}) must be a multiple of config.device.kv_heads"
            f" ({self.kv_heads}).",
        )
        require(self.rope_base > 0, "config.device.rope_base must be positive.")
        require(self.norm_epsilon > 0, "config.device.norm_epsilon must be positive.")
        require(self.head_size % 2 == 0, "config.device.head_size must be even (RoPE pairs).")

    @property
    def compute(self) -> jnp.dtype:
        """The dtype of activations and matrix products."""
        return jnp.dtype(self.compute_dtype)
