"""Attention in which a group of responses shares its prompt's keys and values.

A response token attends to two places: the prompt, stored once per group, and the response so
far. The two score blocks are normalised by one softmax, so the result is that of attention over
prompt and response laid end to end, while the prompt is computed and stored once instead of G
times, and no row needs padding on the left.
"""

import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.device.config import DeviceConfig

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
    """Keys and values of a stretch of response positions, for `attend_step`.

    A layer's cache is a list of these, each from the second on as long as all before it: a step
    reads those that have begun and no others. Keys have positions last.
    """

    keys: Float[Array, "P K G N C"]
    values: Float[Array, "P K G C N"]

    @property
    def size(self) -> int:
        """C, the positions there is room for."""
        return self.values.shape[3]

    def write(
        self,
        keys: Float[Array, "K N P G"],
        values: Float[Array, "K N P G"],
        position: Int[Array, ""],
    ) -> "Cache":
        """With one more position of every row; unchanged if that is outside the stretch."""
        keys, values = (x.transpose(2, 0, 3, 1) for x in (keys, values))  # [P, K, G, N]
        inside = (position >= 0) & (position < self.size)
        position = jnp.clip(position, 0, self.size - 1)

        def put(x, new, axis):
            old = jax.lax.dynamic_slice_in_dim(x, position, 1, axis)
            new = jnp.where(inside, jnp.expand_dims(new, axis).astype(x.dtype), old)
            return jax.lax.dynamic_update_slice_in_dim(x, new, position, axis)

        return Cache(put(self.keys, keys, 4), put(self.values, values, 3))

    def regroup(self, take: Callable[[jax.Array], jax.Array]) -> "Cache":
        """With other rows: `take` maps [P, G, ...] to [P', G', ...]."""

        def move(x):
            return take(x.swapaxes(1, 2)).swapaxes(1, 2)

        return Cache(move(self.keys), move(self.values))


def write(
    caches: list[Cache],
    keys: Float[Array, "K N P G"],
    values: Float[Array, "K N P G"],
    step: Int[Array, ""],
) -> list[Cache]:
    """A layer's cache with response position `step` of every row."""
    begins = itertools.accumulate((cache.size for cache in caches), initial=0)
    return [
        cache.write(keys, values, step - begin)
        for cache, begin in zip(caches, begins, strict=False)
    ]


def stretches(T: int, first: int) -> list[tuple[int, int]]:
    """Where the stretches of a cache of T positions begin and end: first, 2 first, 4 first, ...

    The end is rounded up to a multiple of 16: XLA:CPU reads odd lengths at half the speed.
    """
    T = -(-T // 16) * 16
    ends = [min(first, T)]
    while ends[-1] < T:
        ends.append(min(2 * ends[-1], T))
    return list(itertools.pairwise([0, *ends]))


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
    queries: Float[Array, "H N P G"],
    caches: list[Cache],
    step: Int[Array, ""],
    prompt: PromptCache,
    prompt_mask: Bool[Array, "P S"],
) -> Float[Array, "H N P G"]:
    """`attend` of one new position per row to the caches' positions 0..step and the prompt.

    The prompt comes first, then the stretches of the cache that have begun, one by one, under a
    softmax that is rescaled as larger scores come (arXiv 1805.02867).
    """
    H, N, P, G = queries.shape
    K = prompt.keys.shape[1]
    rows = (queries * N**-0.5).reshape(K, H // K, N, P, G).transpose(3, 0, 4, 1, 2)

    scores = product("pkrn,pkns->pkrs", rows.reshape(P, K, -1, N), prompt.keys)
    scores = jnp.where(prompt_mask[:, None, None], scores, _HIDDEN)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = product("pkrs,pksn->pkrn", weights.astype(prompt.values.dtype), prompt.values)
    carry = tuple(x.reshape(*rows.shape[:-1], -1) for x in (top, total, mixed))

    begin = 0
    for cache in caches:
        add = partial(_add_stretch, rows=rows, cache=cache, last=step - begin)
        # The first stretch has always begun.
        carry = jax.lax.cond(step >= begin, add, lambda c: c, carry) if begin else add(carry)
        begin += cache.size
    _, total, mixed = carry
    mixed = (mixed / total).astype(queries.dtype)  # [P, K, G, h, N]
    return mixed.transpose(1, 3, 4, 0, 2).reshape(H, N, P, G)


def _add_stretch(carry, rows, cache: Cache, last):
    """One stretch of the cache, up to position `last` of it, added to a running softmax.

    The products are written as multiply and sum: XLA then updates the cache in place, where a
    batched matrix product makes it copy the whole cache at every step.
    """
    top, total, mixed = carry
    wide = rows.astype(jnp.float32)
    scores = jnp.sum(wide[..., None] * cache.keys[:, :, :, None], axis=-2)
    scores = jnp.where(jnp.arange(cache.size) <= last, scores, _HIDDEN)
    new_top = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
    scale, weights = jnp.exp(top - new_top), jnp.exp(scores - new_top)
    total = scale * total + weights.sum(axis=-1, keepdims=True)
    mixed = scale * mixed + jnp.sum(weights[..., None] * cache.values[:, :, :, None], axis=-2)
    return new_top, total, mixed


@struct.dataclass
class Rotation:
    """Cosines and sines of the angles by which RoPE turns positions, float32."""

    cos: Float[Array, "*b half"]
    sin: Float[Array, "*b half"]


def rotation(positions: Int[Array, "*b"], config: DeviceConfig) -> Rotation:
    """The rotations of some positions (arXiv 2104.09864)."""
    frequencies = rope_frequencies(config).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rope_frequencies(config: DeviceConfig) -> Float[np.ndarray, " half"]:
    """By how much each pair of features turns per position, in radians, float64.

    With Llama 3's scaling, waves longer than the original context (over `low_frequency`) are
    stretched by `factor`, short ones are kept, and between the two the frequency goes linearly.
    """
    half = config.head_size // 2
    frequencies = config.rope_base ** (-np.arange(half) / half)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.context * frequencies / (2 * np.pi)  # within the original context
    low, high = scaling.low_frequency, scaling.high_frequency
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rotate(x: Float[Array, "*b heads N"], by: Rotation) -> Float[Array, "*b heads N"]:
    """Rotary position embedding of queries or keys; halves are paired, as in Llama."""
    half = x.shape[-1] // 2
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, half)
    cos, sin = (table[..., None, None, :] for table in (by.cos, by.sin))
    sin *= jnp.array([[-1.0], [1.0]])
    # Flipping the halves: XLA:CPU takes 3.5 times as long to concatenate them.
    rotated = pairs * cos + jnp.flip(pairs, axis=-2) * sin
    return rotated.reshape(x.shape).astype(x.dtype)


def rotate_first(x: Float[Array, "heads N P G"], by: Rotation) -> Float[Array, "heads N P G"]:
    """`rotate` of features first; `by` holds the rotations of P positions."""
    half = x.shape[1] // 2
    pairs = x.astype(jnp.float32).reshape(x.shape[0], 2, half, *x.shape[2:])
    cos, sin = by.cos.T[..., None], by.sin.T[..., None]  # [half, P, 1]
    sin *= jnp.array([-1.0, 1.0]).reshape(2, 1, 1, 1)
    return (pairs * cos + jnp.flip(pairs, axis=1) * sin).reshape(x.shape).astype(x.dtype)


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
