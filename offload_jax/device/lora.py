"""Low-rank adapters (LoRA, arXiv 2106.09685): a small tree of weights beside the frozen one.

`params["adapters"]` holds, per target, `a` [L, in..., r] and `b` [L, r, out...]; the matrix then
acts as W + alpha / r * a b. Training computes the two thin products; sampling and export merge.
"""

import math

import jax
import jax.numpy as jnp

from offload_jax.device.config import MATRICES, DeviceConfig
from offload_jax.device.params import Params


def scale(config: DeviceConfig) -> float:
    """By how much an adapter's product counts: alpha / rank."""
    return config.lora.alpha / config.lora.rank


def with_adapters(params: Params) -> Params:
    """The layers' weights, with adapters as `query_a`, `query_b` and so on, for a scan over L."""
    adapters = params.get("adapters", {})
    pairs = {f"{name}_{part}": x for name, pair in adapters.items() for part, x in pair.items()}
    return {**params["layers"], **pairs}


def merge(params: Params, config: DeviceConfig) -> Params:
    """The same policy without adapters."""
    layers = dict(params["layers"])
    for name, pair in params.get("adapters", {}).items():
        weight, contracted = layers[name], MATRICES[name]
        layers[name] = weight + _product(pair, contracted, weight.shape, config).astype(
            weight.dtype
        )
    return {name: x for name, x in params.items() if name != "adapters"} | {"layers": layers}


def _product(pair, contracted, shape, config):
    L = shape[0]
    inputs = math.prod(shape[1 : 1 + contracted])
    a = pair["a"].reshape(L, inputs, -1).astype(jnp.float32)
    b = pair["b"].reshape(L, a.shape[-1], -1).astype(jnp.float32)
    return (scale(config) * a @ b).reshape(shape)


def split(params: Params) -> tuple[Params, Params]:
    """(frozen, trained): with adapters they alone are trained, otherwise everything is."""
    if "adapters" not in params:
        return {}, params
    frozen = {name: x for name, x in params.items() if name != "adapters"}
    return frozen, {"adapters": params["adapters"]}


def join(frozen: Params, trained: Params) -> Params:
    """The inverse of `split`; no gradient flows into what is frozen."""
    return {**jax.lax.stop_gradient(frozen), **trained}
