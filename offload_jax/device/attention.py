"""Attention in which a group of responses shares its prompt's keys and values.

A response token attends to two places: the prompt, stored once per group, and the response so
far. The two score blocks are normalised by one softmax, so the result is that of attention over
prompt and response laid end to end, while the prompt is computed and stored once instead of G
times, and no row needs padding on the left.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

_HIDDEN = -1e30  # a masked score; finite, so that no difference of two is NaN


@struct.dataclass
class KeyValues:
    """Keys and values of T positions; heads lead so that attention is a batch of matrix products.

    `...` is [P] for a prompt (one per group) and [P, G] for responses.
    """

    keys: Float[Array, "... K T N"]
    values: Float[Array, "... K T N"]


@struct.dataclass
class Cache:
    """Keys and values of the responses so far, for `attend_step`; keys have positions last."""

    keys: Float[Array, "P G K N T"]
    values: Float[Array, "P G K T N"]

    def write(self, new: KeyValues, step: Int[Array, ""]) -> "Cache":
        """With the keys and values of one position per row, [P, G, K, 1, N], at `step`."""
        update = jax.lax.dynamic_update_slice_in_dim
        keys = update(self.keys, new.keys.swapaxes(3, 4), step, axis=4)
        return Cache(keys, update(self.values, new.values, step, axis=3))

    def grow(self, T: int) -> "Cache":
        """With room for T positions."""
        more = T - self.values.shape[3]
        unchanged = [(0, 0)] * 3
        keys = jnp.pad(self.keys, [*unchanged, (0, 0), (0, more)])
        return Cache(keys, jnp.pad(self.values, [*unchanged, (0, more), (0, 0)]))


def attend(
    queries: Float[Array, "P G Q H N"],
    own: KeyValues,
    own_mask: Bool[Array, "Q T"],
    prompt: KeyValues | None = None,
    prompt_mask: Bool[Array, "P S"] | None = None,
) -> Float[Array, "P G Q H N"]:
    """Grouped-query attention over a row's own positions and, if given, its group's prompt.

    Args:
        queries: Q query positions of each row; the H heads are grouped as [K, H / K].
        own: keys and values of the row itself, [P, G, K, T, N].
        own_mask: which own positions a query sees.
        prompt: keys and values of the prompt, [P, K, S, N].
        prompt_mask: which prompt positions are real; at least one of each prompt.

    Returns:
        The heads' outputs. Scores and softmax are float32 whatever the inputs' dtype.
    """
    P, G, Q, H, N = queries.shape
    K, T = own.keys.shape[-3:-1]
    h = H // K
    # The query heads of one key/value head are rows of one matrix: [P, G, K, h Q, N].
    rows = (queries * N**-0.5).reshape(P, G, Q, K, h, N).transpose(0, 1, 3, 4, 2, 5)
    rows = rows.reshape(P, G, K, h * Q, N)

    scores = product("pgkrn,pgktn->pgkrt", rows, own.keys).reshape(P, G, K, h, Q, T)
    scores = jnp.where(own_mask, scores, _HIDDEN).reshape(P, G, K, h * Q, T)
    top = scores.max(axis=-1, keepdims=True)
    if prompt is not None:
        prompt_scores = product("pgkrn,pksn->pgkrs", rows, prompt.keys)
        prompt_scores = jnp.where(prompt_mask[:, None, None, None], prompt_scores, _HIDDEN)
        top = jnp.maximum(top, prompt_scores.max(axis=-1, keepdims=True))
    top = jax.lax.stop_gradient(top)  # the softmax does not depend on it

    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = product("pgkrt,pgktn->pgkrn", weights.astype(own.values.dtype), own.values)
    if prompt is not None:
        prompt_weights = jnp.exp(prompt_scores - top)
        total += prompt_weights.sum(axis=-1, keepdims=True)
        mixed += product(
            "pgkrs,pksn->pgkrn", prompt_weights.astype(prompt.values.dtype), prompt.values
        )
    mixed = (mixed / total).astype(queries.dtype).reshape(P, G, K, h, Q, N)
    return mixed.transpose(0, 1, 4, 2, 3, 5).reshape(P, G, Q, H, N)


def attend_causally(
    queries: Float[Array, "P G T H N"],
    own: KeyValues,
    prompt: KeyValues | None = None,
    prompt_mask: Bool[Array, "P S"] | None = None,
    blocks: int = 4,
) -> Float[Array, "P G T H N"]:
    """`attend` of T positions to themselves and what stands before them.

    Queries are taken in a few blocks, each with the keys up to its own end: the scores above the
    diagonal, which would be masked, are mostly never computed.
    """
    T = queries.shape[2]
    if T == 0:  # responses of one token have no token that is read
        return queries
    size = -(-T // blocks)
    mixed = []
    for first in range(0, T, size):
        end = min(first + size, T)
        seen = jnp.arange(end) <= jnp.arange(first, end)[:, None]
        before = jax.tree.map(lambda kv, end=end: kv[..., :end, :], own)
        mixed.append(attend(queries[:, :, first:end], before, seen, prompt, prompt_mask))
    return jnp.concatenate(mixed, axis=2)


def attend_step(
    queries: Float[Array, "P G H N"],
    cache: Cache,
    step: Int[Array, ""],
    prompt: KeyValues,
    prompt_mask: Bool[Array, "P S"],
) -> Float[Array, "P G H N"]:
    """`attend` of one new position per row to the cache's positions 0..step and the prompt.

    The products with the cache are written as multiply and sum: XLA then updates the cache in
    place, where a batched matrix product makes it copy the whole cache at every step.
    """
    P, G, H, N = queries.shape
    K, T = cache.keys.shape[2], cache.keys.shape[4]
    rows = (queries * N**-0.5).reshape(P, G, K, H // K, N).astype(jnp.float32)

    scores = jnp.sum(rows[..., None] * cache.keys[:, :, :, None], axis=-2)
    scores = jnp.where(jnp.arange(T) <= step, scores, _HIDDEN)
    prompt_scores = product("pgkhn,pksn->pgkhs", rows.astype(prompt.keys.dtype), prompt.keys)
    prompt_scores = jnp.where(prompt_mask[:, None, None, None], prompt_scores, _HIDDEN)
    top = jnp.maximum(scores.max(-1, keepdims=True), prompt_scores.max(-1, keepdims=True))

    weights, prompt_weights = jnp.exp(scores - top), jnp.exp(prompt_scores - top)
    total = weights.sum(-1, keepdims=True) + prompt_weights.sum(-1, keepdims=True)
    mixed = jnp.sum(weights[..., None] * cache.values[:, :, :, None], axis=-2)
    mixed += product("pgkhs,pksn->pgkhn", prompt_weights.astype(prompt.values.dtype), prompt.values)
    return (mixed / total).astype(queries.dtype).reshape(P, G, H, N)


def rotate(
    x: Float[Array, "P G T H N"], positions: Int[Array, "*b T"], base: float
) -> Float[Array, "P G T H N"]:
    """Rotary position embedding (arXiv 2104.09864), halves paired as in Llama; float32 angles."""
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def product(equation: str, a: jax.Array, b: jax.Array) -> Float[Array, "..."]:
    """`jnp.einsum` of two arrays of one dtype with a float32 result.

    XLA:CPU has no bfloat16 product with float32 result; there the inputs are widened first, which
    is exact.
    """

    def widened(a, b):
        return jnp.einsum(equation, a.astype(jnp.float32), b.astype(jnp.float32))

    def accumulated(a, b):
        return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)

    if a.dtype == jnp.float32:
        return jnp.einsum(equation, a, b)
    return jax.lax.platform_dependent(a, b, cpu=widened, default=accumulated)
