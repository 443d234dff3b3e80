"""What shapes the device LLM."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from offload_jax.settings import require

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of slow rotations to a longer context (`rope_type` "llama3")."""

    factor: float  # by which the slowest frequencies are divided
    low_frequency: float  # wavelengths longer than `context` / this are stretched in full
    high_frequency: float  # wavelengths shorter than `context` / this stay
    context: int  # tokens of the context before it was extended

    def __post_init__(self):
        require(self.factor > 0, "config.device.rope_scaling.factor must be positive.")
        require(self.context >= 1, "config.device.rope_scaling.context must be at least 1.")
        require(
            0 < self.low_frequency < self.high_frequency,
            "config.device.rope_scaling.low_frequency must be positive and below high_frequency.",
        )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): W + alpha / rank * A B, with W frozen."""

    rank: int
    alpha: float
    targets: tuple = ("query", "key", "value", "output", "gate", "up", "down")  # matrices

    def __post_init__(self):
        require(self.rank >= 1, "config.device.lora.rank must be at least 1.")
        require(self.alpha > 0, "config.device.lora.alpha must be positive.")
        require(len(self.targets) > 0, "config.device.lora.targets must not be empty.")
        for name in self.targets:
            require(
                name in MATRICES and self.targets.count(name) == 1,
                f"config.device.lora.targets: {name!r} must be one of {', '.join(MATRICES)}, once.",
            )


# The matrices of a layer, and how many of their leading axes are contracted with the activations.
MATRICES = {"query": 1, "key": 1, "value": 1, "output": 2, "gate": 1, "up": 1, "down": 1}


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """A Llama-style decoder (RMSNorm, RoPE, grouped-query attention, SwiGLU).

    Llama 3.x, Qwen 2.5 (`query_key_value_bias`), Qwen 3 (`query_key_norm`) and SmolLM2 differ in
    nothing else. The shape of a pretrained one is read from its checkpoint.
    """

    vocabulary: int  # V, at least the tokenizer's size
    width: int  # D
    layers: int  # L
    heads: int  # H, query heads
    kv_heads: int  # K, key/value heads, a divisor of H
    head_size: int  # N, even; independent of the width
    mlp: int  # F, hidden size of the MLP
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    query_key_value_bias: bool = False
    output_bias: bool = False  # of attention's output
    query_key_norm: bool = False  # RMSNorm of each head's queries and keys, before RoPE
    norm_epsilon: float = 1e-6
    tied_embeddings: bool = True
    context: int | None = None  # most tokens of prompt and response together; None: no bound
    param_dtype: Dtype = "float32"
    compute_dtype: Dtype = "float32"  # norms, softmax and log-probs are always float32
    cache_dtype: Dtype | None = None  # keys and values while decoding; None: compute_dtype
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes
    lora: LoraConfig | None = None  # train adapters instead of the weights
    pretrained: str | None = None  # where the weights come from; None: random ones

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

    @property
    def cache(self) -> jnp.dtype:
        """The dtype of keys and values while decoding."""
        return jnp.dtype(self.cache_dtype or self.compute_dtype)
