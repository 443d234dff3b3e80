"""The device LLM's weights, described once: shape, dtype, logical axes, initialiser.

Initialisation, sharding, counting and loading are all derived from `abstract_params`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from offload_jax.device.config import MATRICES, DeviceConfig
from offload_jax.sharding import sharding_of

Params = dict[str, Any]  # a tree of arrays


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One weight: `initial(key, shape, dtype)` makes it."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  # logical axes, see offload_jax.sharding.RULES
    dtype: jnp.dtype
    initial: Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]


def abstract_params(config: DeviceConfig) -> Any:
    """The tree of `ParamSpec` of a device LLM; layers are stacked along a leading axis L."""
    L, D, H, K, N = config.layers, config.width, config.heads, config.kv_heads, config.head_size
    F, V = config.mlp, config.vocabulary
    dtype = jnp.dtype(config.param_dtype)

    def matrix(shape, axes, fan_in, gain=1.0):
        scale = gain / math.sqrt(fan_in)
        return ParamSpec(shape, axes, dtype, _normal(scale))

    def norm(shape, axes):
        return ParamSpec(shape, axes, dtype, lambda key, shape, dtype: jnp.ones(shape, dtype))

    def zeros(shape, axes):
        return ParamSpec(shape, axes, dtype, lambda key, shape, dtype: jnp.zeros(shape, dtype))

    # What is added to the residual stream starts smaller, the more layers add to it (GPT-2).
    residual = 1.0 / math.sqrt(2 * L)
    layers = {
        "attention_norm": norm((L, D), (None, "width")),
        "query": matrix((L, D, H, N), (None, "width", "heads", None), D),
        "key": matrix((L, D, K, N), (None, "width", "kv_heads", None), D),
        "value": matrix((L, D, K, N), (None, "width", "kv_heads", None), D),
        "output": matrix((L, H, N, D), (None, "heads", None, "width"), H * N, residual),
        "mlp_norm": norm((L, D), (None, "width")),
        "gate": matrix((L, D, F), (None, "width", "mlp"), D),
        "up": matrix((L, D, F), (None, "width", "mlp"), D),
        "down": matrix((L, F, D), (None, "mlp", "width"), F, residual),
    }
    if config.query_key_value_bias:
        layers["query_bias"] = zeros((L, H, N), (None, "heads", None))
        layers["key_bias"] = zeros((L, K, N), (None, "kv_heads", None))
        layers["value_bias"] = zeros((L, K, N), (None, "kv_heads", None))
    if config.output_bias:
        layers["output_bias"] = zeros((L, D), (None, "width"))
    if config.query_key_norm:
        layers["query_norm"] = norm((L, N), (None, None))
        layers["key_norm"] = norm((L, N), (None, None))
    params = {
        "embedding": ParamSpec((V, D), ("vocabulary", "width"), dtype, _normal(D**-0.5)),
        "layers": layers,
        "final_norm": norm((D,), ("width",)),
    }
    if not config.tied_embeddings:
        params["head"] = matrix((D, V), ("width", "vocabulary"), D)
    if config.lora is not None:
        params["adapters"] = {
            name: _adapter(layers[name], name, config) for name in config.lora.targets
        }
    return params


def _adapter(weight: ParamSpec, name: str, config: DeviceConfig) -> dict[str, ParamSpec]:
    """`a` is random and `b` zero, so that training starts from the frozen policy; float32."""
    ends, r = 1 + MATRICES[name], config.lora.rank
    fan_in = math.prod(weight.shape[1:ends])
    zero = lambda key, shape, dtype: jnp.zeros(shape, dtype)  # noqa: E731
    dtype = jnp.dtype(jnp.float32)
    first = (*weight.shape[:ends], r), (*weight.axes[:ends], None)
    second = (weight.shape[0], r, *weight.shape[ends:]), (None, None, *weight.axes[ends:])
    return {
        "a": ParamSpec(*first, dtype, _normal(1 / math.sqrt(fan_in))),
        "b": ParamSpec(*second, dtype, zero),
    }


def param_shardings(config: DeviceConfig, mesh: Mesh) -> Any:
    """The tree of shardings of the weights.

    Raises:
        ValueError: a weight does not divide over the mesh.
    """
    return _map(lambda spec: sharding_of(mesh, spec.axes, spec.shape), abstract_params(config))


def param_shapes(config: DeviceConfig, mesh: Mesh) -> Any:
    """The weights without their numbers: a tree of `jax.ShapeDtypeStruct`, sharded over the mesh.

    Raises:
        ValueError: a weight does not divide over the mesh.
    """

    def shape(spec: ParamSpec) -> jax.ShapeDtypeStruct:
        sharding = sharding_of(mesh, spec.axes, spec.shape)
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)

    return _map(shape, abstract_params(config))


def init_params(
    config: DeviceConfig, key: jax.Array, mesh: Mesh | None = None, only: str | None = None
) -> Params:
    """Random weights, made shard by shard on the mesh (the same numbers on every mesh).

    `only`: make this part of the tree alone.
    """
    specs = abstract_params(config)
    specs = specs if only is None else specs[only]

    def make(key):
        leaves, tree = jax.tree.flatten(specs, is_leaf=_is_spec)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(
            tree, [s.initial(k, s.shape, s.dtype) for s, k in zip(leaves, keys, strict=True)]
        )

    shardings = param_shardings(config, mesh) if mesh is not None else None
    if only is not None and mesh is not None:
        shardings = shardings[only]
    return jax.jit(make, out_shardings=shardings)(key)


def count_params(config: DeviceConfig) -> int:
    """How many numbers the weights hold, adapters not counted."""
    specs = abstract_params(dataclasses.replace(config, lora=None))
    specs = jax.tree.leaves(specs, is_leaf=_is_spec)
    return sum(math.prod(spec.shape) for spec in specs)


def fourier_features(values: Int[Array, " n"], width: int) -> Float[Array, "n D"]:
    """Embeddings of integers in which near numbers are near and sums are rotations.

    Cosines and sines of `2 pi v / period` for periods from 2 to 256, geometrically spaced (as
    pretrained LLMs come to represent numbers, arXiv 2406.03445), of the scale of a random row.
    """
    periods = jnp.geomspace(2.0, 256.0, width // 2)
    angles = 2 * jnp.pi * values[:, None] / periods
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(features, ((0, 0), (0, width % 2))) * width**-0.5 * math.sqrt(2)


def _normal(scale: float):
    def initial(key, shape, dtype):
        return (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return initial


def _is_spec(x: Any) -> bool:
    return isinstance(x, ParamSpec)


def _map(f: Callable[[ParamSpec], Any], specs: Any) -> Any:
    return jax.tree.map(f, specs, is_leaf=_is_spec)
