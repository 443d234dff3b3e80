"""DeBERTa-v3 (arXiv 2111.09543): an encoder whose attention keeps content and position apart.

The score of query i and key j at distance i - j has three parts (arXiv 2006.03654, section 3.1):
content to content, content to position and position to content. Positions are only relative, their
distances in buckets of logarithmic size, and the projections of content serve positions too.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from offload_jax.device.params import Params, ParamSpec
from offload_jax.settings import require
from offload_jax.sharding import constrain

_HIDDEN = -1e30  # the score of a padded key


@dataclasses.dataclass(frozen=True)
class DebertaConfig:
    """What shapes the encoder; weights and activations are float32."""

    vocabulary: int  # V
    width: int  # D
    layers: int  # L
    heads: int  # H, a divisor of the width
    mlp: int  # F, hidden size of the MLP
    buckets: int = 256  # distances up to half of it are told apart, longer ones by their logarithm
    max_distance: int = 512  # beyond it all distances are one
    norm_epsilon: float = 1e-7
    dropout: float = 0.1  # of embeddings, of what each half of a layer adds, of the pooled state

    def __post_init__(self):
        for name in ("vocabulary", "width", "layers", "heads", "mlp"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1.")
        require(
            self.width % self.heads == 0,
            f"width ({self.width}) must be a multiple of heads ({self.heads}).",
        )
        require(self.buckets >= 2, "buckets must be at least 2.")
        require(
            self.max_distance > self.buckets // 2 + 1,
            f"max_distance ({self.max_distance}) must be above half of buckets ({self.buckets})"
            " plus one.",
        )
        require(self.norm_epsilon > 0, "norm_epsilon must be positive.")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; it must be in [0, 1).")


def abstract_params(config: DebertaConfig) -> Any:
    """The tree of `ParamSpec` of encoder, pooler and head; layers are stacked along an axis L."""
    V, D, L, F = config.vocabulary, config.width, config.layers, config.mlp

    def dense(rows, columns, *stack):
        bias = ParamSpec((*stack, columns), (None,) * (len(stack) + 1), _FLOAT, _zeros)
        axes = (None,) * (len(stack) + 2)
        return {"kernel": ParamSpec((*stack, rows, columns), axes, _FLOAT, _normal), "bias": bias}

    def norm(*shape):
        axes = (None,) * len(shape)
        scale = ParamSpec(shape, axes, _FLOAT, _ones)
        return {"scale": scale, "bias": ParamSpec(shape, axes, _FLOAT, _zeros)}

    return {
        "embedding": ParamSpec((V, D), (None, None), _FLOAT, _normal),
        "embedding_norm": norm(D),
        "positions": ParamSpec((2 * config.buckets, D), (None, None), _FLOAT, _normal),
        "positions_norm": norm(D),
        "layers": {
            "query": dense(D, D, L),
            "key": dense(D, D, L),
            "value": dense(D, D, L),
            "output": dense(D, D, L),
            "attention_norm": norm(L, D),
            "up": dense(D, F, L),
            "down": dense(F, D, L),
            "mlp_norm": norm(L, D),
        },
        "pooler": dense(D, D),
        "head": dense(D, 1),
    }


@partial(jax.jit, static_argnames="config")
def init_params(config: DebertaConfig, key: jax.Array) -> Params:
    """Random weights."""
    specs = abstract_params(config)
    leaves, tree = jax.tree.flatten(specs, is_leaf=lambda x: isinstance(x, ParamSpec))
    keys = jax.random.split(key, len(leaves))
    made = [s.initial(k, s.shape, s.dtype) for s, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, made)


def encode(
    params: Params,
    config: DebertaConfig,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    key: jax.Array | None = None,
) -> Float[Array, "B S D"]:
    """Final hidden states; what stands beyond a row's length is not seen by the rest.

    Args:
        params: the weights.
        config: their shape.
        tokens: right-padded with any id below V.
        lengths: real tokens of each row, at least 1.
        key: randomness of the dropout; without it nothing is dropped.
    """
    return _encode(params, config, tokens, lengths, key, tokens.shape[1])


def classify(
    params: Params,
    config: DebertaConfig,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    key: jax.Array | None = None,
) -> Float[Array, " B"]:
    """A logit per row from the first token's final state (the context pooler); see `encode`."""
    inner, outer = _split(key)
    first = _encode(params, config, tokens, lengths, inner, 1)[:, 0]
    pooled = _gelu(_dense(params["pooler"], first))
    return _dense(params["head"], _drop(pooled, config, outer))[:, 0]


def bucketed(
    distances: Int[np.ndarray, "*n"], buckets: int, max_distance: int
) -> Int[np.ndarray, "*n"]:
    """Signed buckets of distances: exact up to `buckets // 2`, then of logarithmic size.

    Computed on the host in float32, as the published weights were trained.
    """
    half = buckets // 2
    far = np.maximum(np.abs(distances), half).astype(np.float32)
    share = np.log(far / np.float32(half)) / np.log(np.float32((max_distance - 1) / half))
    bucket = np.ceil(share * (half - 1)).astype(np.int32) + half
    return np.where(np.abs(distances) <= half, distances, np.sign(distances) * bucket)


def _encode(params, config, tokens, lengths, key, Q):
    """Final states of the first Q tokens: the last layer computes no others."""
    S, L = tokens.shape[1], config.layers
    seen = (jnp.arange(S) < lengths[:, None])[:, None]
    before, key = _split(key)
    keys = None if key is None else jax.random.split(key, L)
    positions = _layer_norm(params["positions_norm"], params["positions"], config)
    x = _layer_norm(params["embedding_norm"], params["embedding"][tokens], config)
    x = constrain(_drop(x, config, before), "prompts")

    def inner(x, inputs):
        return _layer(*inputs, config, x, positions, seen, S), None

    layers = (params["layers"], keys)
    x, _ = jax.lax.scan(inner, x, jax.tree.map(lambda w: w[: L - 1], layers))
    return _layer(*jax.tree.map(lambda w: w[-1], layers), config, x, positions, seen, Q)


def _layer(weights, key, config, x, positions, seen, Q):
    """One layer's states of the first Q tokens, [B, Q, D]."""
    first, second = _split(key)
    mixed = _dense(weights["output"], _attend(weights, config, x, positions, seen, Q))
    mixed = _drop(mixed, config, first)
    x = _layer_norm(weights["attention_norm"], x[:, :Q] + mixed, config)
    added = _dense(weights["down"], _gelu(_dense(weights["up"], x)))
    return _layer_norm(weights["mlp_norm"], x + _drop(added, config, second), config)


def _attend(weights, config, x, positions, seen, Q):
    """Disentangled attention of the first Q tokens to all (arXiv 2006.03654, equation 4)."""
    B, S, D = x.shape
    H = config.heads
    N = D // H

    def heads(name, x):  # [H, ..., N]: with heads first, positions are one product per head
        projected = _dense(weights[name], x)
        return jnp.moveaxis(projected.reshape(*x.shape[:-1], H, N), -2, 0)

    queries, keys, values = heads("query", x[:, :Q]), heads("key", x), heads("value", x)
    falling, rising = np.arange(Q - 1, -S - 1, -1), np.arange(1 - S, Q + 1)
    position_keys = heads("key", positions)[:, _rows(config, falling)].swapaxes(1, 2)
    position_queries = heads("query", positions)[:, _rows(config, rising)].swapaxes(1, 2)

    scores = jnp.einsum("hbin,hbjn->hbij", queries, keys)
    to_position = queries.reshape(H, B * Q, N) @ position_keys
    scores += _by_distance(to_position.reshape(H, B, Q, S + Q), S)
    from_position = keys.reshape(H, B * S, N) @ position_queries
    scores += _by_distance(from_position.reshape(H, B, S, S + Q), Q).swapaxes(2, 3)
    scores = jnp.where(seen, scores * (3 * N) ** -0.5, _HIDDEN)
    mixed = jnp.einsum("hbij,hbjn->bihn", jax.nn.softmax(scores, axis=-1), values)
    return mixed.reshape(B, Q, D)


def _rows(config, distances):
    """Rows of the table of positions for distances of a query to a key."""
    buckets = bucketed(distances, config.buckets, config.max_distance)
    return np.clip(buckets + config.buckets, 0, 2 * config.buckets - 1)


def _by_distance(x: Float[Array, "H B m R"], n: int) -> Float[Array, "H B m n"]:
    """Element [i, j] is x[i, j - i + m - 1], R = m + n: rows cut elsewhere, not a gather.

    The last column is never read; without it a single token would be rows of nothing.
    """
    H, B, m, R = x.shape
    flat = x.reshape(H, B, m * R)[:, :, m - 1 : m - 1 + m * (R - 1)]
    return flat.reshape(H, B, m, R - 1)[..., :n]


def _dense(weights, x):
    """One plain matrix product over all rows, which XLA:CPU does fastest."""
    flat = x.reshape(-1, x.shape[-1]) @ weights["kernel"]
    return flat.reshape(*x.shape[:-1], -1) + weights["bias"]


def _layer_norm(weights, x, config):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + config.norm_epsilon)
    return normed * weights["scale"] + weights["bias"]


def _drop(x, config, key):
    """Zeroes a share of x and scales up the rest; without a key nothing happens."""
    if key is None or config.dropout == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - config.dropout, x.shape)
    return jnp.where(kept, x / (1 - config.dropout), 0)


def _split(key):
    return (None, None) if key is None else jax.random.split(key)


def _gelu(x):
    return jax.nn.gelu(x, approximate=False)


_FLOAT = jnp.dtype("float32")


def _normal(key, shape, dtype):
    return 0.02 * jax.random.normal(key, shape, dtype)


def _zeros(key, shape, dtype):
    return jnp.zeros(shape, dtype)


def _ones(key, shape, dtype):
    return jnp.ones(shape, dtype)
