"""Sampling a token from a large vocabulary.

The vocabulary is cut into about sqrt(V) blocks of about sqrt(V) tokens. Drawing a block by its mass
and then a token inside it is the softmax exactly, takes 2 sqrt(V) random numbers instead of V, and
yields the log-normaliser on the way.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def sample(
    keys: Key[Array, "P G"], scores: Float[Array, "V P G"]
) -> tuple[Int[Array, "P G"], Float[Array, "P G"]]:
    """Tokens drawn from softmax(scores), one key for each, and their log-probabilities."""

    def draw(keys, masses):
        # Along the last axis, so that a row's numbers depend on its own key alone.
        rows = jnp.moveaxis(masses, 0, -1)
        return jax.vmap(jax.vmap(jax.random.categorical))(keys, rows)

    fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
    return _choose(
        scores,
        block_of=lambda masses, _: draw(fold(keys, 0), masses),
        token_of=lambda block: draw(fold(keys, 1), block),
    )


def argmax(scores: Float[Array, "V P G"]) -> tuple[Int[Array, "P G"], Float[Array, "P G"]]:
    """The likeliest tokens (the first of equals) and their log-probabilities under softmax."""
    return _choose(
        scores,
        block_of=lambda _, tops: jnp.argmax(tops, axis=0),
        token_of=lambda block: jnp.argmax(block, axis=0),
    )


def block_size(V: int) -> int:
    """The largest divisor of V up to sqrt(V), if one is within a factor of 16 of it.

    A size that does not divide V costs a copy of the scores at every step. Of those that do, one
    that leaves a multiple of 4 blocks comes first: where the vocabulary is split over `tensor`,
    blocks must not straddle its parts, or every step gathers the head. (Blocks larger than sqrt(V)
    would do as well, but move more bytes: docs/scaling.md.) The mesh itself is not asked, so that
    the same key draws the same token on all meshes.
    """
    sizes = [d for d in range(1, math.isqrt(V) + 1) if V % d == 0 and 256 * d * d >= V]
    if not sizes:
        return round(V**0.5)
    return max(sizes, key=lambda d: (V // d % 4 == 0, d))


def _choose(scores, block_of, token_of):
    V = scores.shape[0]
    size = block_size(V)
    missing = -V % size
    blocks = jnp.pad(scores, [(0, missing), (0, 0), (0, 0)], constant_values=-jnp.inf)
    blocks = blocks.reshape(-1, size, *scores.shape[1:])
    tops = blocks.max(axis=1)
    top = tops.max(axis=0)
    masses = jnp.exp(blocks - top).sum(axis=1)
    index = block_of(jnp.log(masses), tops)
    block = jnp.take_along_axis(blocks, index[None, None], axis=0)[0]
    within = token_of(block)
    score = jnp.take_along_axis(block, within[None], axis=0)[0]
    tokens = (index * size + within).astype(jnp.int32)
    return tokens, score - top - jnp.log(masses.sum(axis=0))
