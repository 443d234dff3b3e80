"""Attention in which a group of responses shares its prompt's keys and values.

A response token attends to two places: the prompt, stored once per group, and the response so
far. The two score blocks are normalised by one softmax, so the result is that of attention over
prompt and response laid end to end, while the prompt is computed and stored once instead of G
times, and no row needs padding on the left.
"""

from collections.abc import Callable

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
class PromptCache:
    """A prompt's keys and values, for `attend_step`; keys have positions last."""

    keys: Float[Array, "P K N S"]
    values: Float[Array, "P K S N"]


@struct.dataclass
class Cache:
    """Keys and values of the responses so far, for `attend_step`, in blocks of C positions.

    Block by block, because a step then reads the blocks that are filled and no others, whatever
    the longest response; keys have positions last.
    """

    keys: Float[Array, "blocks P K G N C"]
    values: Float[Array, "blocks P K G C N"]

    @classmethod
    def empty(cls, P: int, G: int, K: int, N: int, T: int, block: int, dtype: jnp.dtype) -> "Cache":
        """Room for T positions of P x G responses."""
        shape = (-(-T // block), P, K, G, block, N)
        values = jnp.zeros(shape, dtype)
        return cls(values.swapaxes(4, 5), values)

    def write(self, new: KeyValues, step: Int[Array, ""]) -> "Cache":
        """With the keys and values of one position per row, [P, G, K, 1, N], at `step`."""
        block, position = jnp.divmod(step, self.values.shape[4])
        keys, values = (x.swapaxes(1, 2)[None] for x in (new.keys, new.values))
        update = jax.lax.dynamic_update_slice
        return Cache(
            update(self.keys, keys.swapaxes(4, 5), (block, 0, 0, 0, 0, position)),
            update(self.values, values, (block, 0, 0, 0, position, 0)),
        )

    def regroup(self, take: Callable[[jax.Array], jax.Array], filled: Int[Array, ""]) -> "Cache":
        """With other rows: `take` maps [P, G, ...] to [P', G', ...]; empty blocks stay empty."""

        def move(x):
            rows_first = lambda block: take(block.swapaxes(1, 2)).swapaxes(1, 2)  # noqa: E731
            shape = jax.eval_shape(rows_first, x[0]).shape
            new = jnp.zeros((x.shape[0], *shape), x.dtype)
            return jax.lax.fori_loop(0, filled, lambda b, new: new.at[b].set(rows_first(x[b])), new)

        return Cache(move(self.keys), move(self.values))


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
    prompt: PromptCache,
    prompt_mask: Bool[Array, "P S"],
) -> Float[Array, "P G H N"]:
    """`attend` of one new position per row to the cache's positions 0..step and the prompt.

    The prompt comes first, then the filled blocks of the cache one by one, under a softmax that
    is rescaled as larger scores come (arXiv 1805.02867).
    """
    P, G, H, N = queries.shape
    K, C = cache.values.shape[2], cache.values.shape[4]
    rows = (queries * N**-0.5).reshape(P, G, K, H // K, N).swapaxes(1, 2)

    scores = product("pkrn,pkns->pkrs", rows.reshape(P, K, -1, N), prompt.keys)
    scores = jnp.where(prompt_mask[:, None, None], scores, _HIDDEN)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = product("pkrs,pksn->pkrn", weights.astype(prompt.values.dtype), prompt.values)
    top, total, mixed = (x.reshape(*rows.shape[:-1], -1) for x in (top, total, mixed))

    def add_block(block, carry):
        top, total, mixed = carry
        keys, values = cache.keys[block], cache.values[block]
        scores = product("pkghn,pkgnc->pkghc", rows, keys)
        scores = jnp.where(block * C + jnp.arange(C) <= step, scores, _HIDDEN)
        new_top = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
        scale, weights = jnp.exp(top - new_top), jnp.exp(scores - new_top)
        total = scale * total + weights.sum(axis=-1, keepdims=True)
        mixed = scale * mixed + product("pkghc,pkgcn->pkghn", weights.astype(values.dtype), values)
        return new_top, total, mixed

    _, total, mixed = jax.lax.fori_loop(0, step // C + 1, add_block, (top, total, mixed))
    return (mixed / total).swapaxes(1, 2).reshape(P, G, H, N).astype(queries.dtype)


@struct.dataclass
class Rotation:
    """Cosines and sines of the angles by which RoPE turns positions, float32."""

    cos: Float[Array, "*b half"]
    sin: Float[Array, "*b half"]


def rotation(positions: Int[Array, "*b"], head_size: int, base: float) -> Rotation:
    """The rotations of some positions (arXiv 2104.09864)."""
    half = head_size // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "*b heads N"], by: Rotation) -> Float[Array, "*b heads N"]:
    """Rotary position embedding of queries or keys; halves are paired, as in Llama."""
    half = x.shape[-1] // 2
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, half)
    cos, sin = (table[..., None, None, :] for table in (by.cos, by.sin))
    sin *= jnp.array([[-1.0], [1.0]])
    # Flipping the halves: XLA:CPU takes 3.5 times as long to concatenate them.
    rotated = pairs * cos + jnp.flip(pairs, axis=-2) * sin
    return rotated.reshape(x.shape).astype(x.dtype)


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
