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


@struct.dataclass
class KeyValues:
    """Keys and values of T positions; heads lead so that attention is a batch of matrix products.

    `...` is [P] for a prompt (one per group) and [P, G] for responses.
    """

    keys: Float[Array, "... K T N"]
    values: Float[Array, "... K T N"]


def attend(
    queries: Float[Array, "P G Q H N"],
    own: KeyValues,
    own_mask: Bool[Array, "*b Q T"],
    prompt: KeyValues | None = None,
    prompt_mask: Bool[Array, "P S"] | None = None,
) -> Float[Array, "P G Q H N"]:
    """Grouped-query attention over a row's own positions and, if given, its group's prompt.

    Args:
        queries: Q query positions of each row; the H heads are grouped as [K, H / K].
        own: keys and values of the row itself, [P, G, K, T, N].
        own_mask: which own positions a query sees, broadcast against [P, G, Q, T].
        prompt: keys and values of the prompt, [P, K, S, N].
        prompt_mask: which prompt positions are real.

    Returns:
        The heads' outputs. Scores and softmax are float32 whatever the inputs' dtype.
    """
    P, G, Q, H, N = queries.shape
    K, T = own.keys.shape[-3:-1]
    grouped = queries.reshape(P, G, Q, K, H // K, N) * N**-0.5

    scores = _scores("pgqkhn,pgktn->pgkqht", grouped, own.keys)
    scores = jnp.where(own_mask[..., None, :, None, :], scores, -jnp.inf)
    if prompt is None:
        weights = jax.nn.softmax(scores).astype(queries.dtype)
        mixed = jnp.einsum("pgkqht,pgktn->pgqkhn", weights, own.values)
        return mixed.reshape(P, G, Q, H, N)

    prompt_scores = _scores("pgqkhn,pksn->pgkqhs", grouped, prompt.keys)
    prompt_scores = jnp.where(prompt_mask[:, None, None, None, None], prompt_scores, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([scores, prompt_scores], axis=-1))
    weights = weights.astype(queries.dtype)
    mixed = jnp.einsum("pgkqht,pgktn->pgqkhn", weights[..., :T], own.values)
    mixed += jnp.einsum("pgkqhs,pksn->pgqkhn", weights[..., T:], prompt.values)
    return mixed.reshape(P, G, Q, H, N)


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


def _scores(equation: str, queries: jax.Array, keys: jax.Array) -> Float[Array, "..."]:
    return jnp.einsum(equation, queries, keys, preferred_element_type=jnp.float32)
