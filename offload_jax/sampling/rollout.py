"""Group rollouts: G sampled responses to each of P prompts, in one jitted program.

Randomness is `fold_in(seed key, step, prompt id, sample, position)`: a response depends neither on
where its prompt stands in the batch nor on the mesh, and a resumed run needs the step alone.
"""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from offload_jax.device import model
from offload_jax.device.attention import Cache, PromptCache
from offload_jax.device.config import DeviceConfig, Dtype
from offload_jax.device.params import Params
from offload_jax.sampling import categorical
from offload_jax.sampling.compaction import (
    Packing,
    by_shard,
    grids,
    pack,
    take_rows,
    take_tiles,
    tiles_needed,
)
from offload_jax.settings import require
from offload_jax.sharding import constrain, shards_in_context


@struct.dataclass
class PromptBatch:
    """P prompts as tokens, padded on the right."""

    ids: Int[Array, " P"]  # the task's prompt ids
    tokens: Int[Array, "P S"]
    lengths: Int[Array, " P"]  # at least 1


@struct.dataclass
class Rollout:
    """G responses to each of P prompts; what follows a response's end is padding."""

    tokens: Int[Array, "P G T"]
    logprobs: Float[Array, "P G T"]  # of the sampled tokens, zero in the padding
    lengths: Int[Array, "P G"]  # including the stop token
    stopped: Bool[Array, "P G"]  # finish reason: stop token (True) or length (False)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are sampled."""

    group: int  # G, responses per prompt
    prompt_tokens: int  # S, the longest prompt
    response_tokens: int  # T, the longest response, stop token included
    temperature: float = 1.0  # 0: greedy
    cache_tokens: int = 64  # the decoder's cache begins with so many positions, then doubles
    shrink: float = 0.5  # finished rows leave the batch when it shrinks by this; 1: never
    compute_dtype: Dtype | None = None  # of weights and activations; None: as in training

    def __post_init__(self):
        for name in ("group", "prompt_tokens", "response_tokens", "cache_tokens"):
            require(getattr(self, name) >= 1, f"config.sampling.{name} must be at least 1.")
        require(self.temperature >= 0, "config.sampling.temperature must not be negative.")
        require(0 < self.shrink <= 1, "config.sampling.shrink must be above 0 and at most 1.")


@struct.dataclass
class _Rows:
    """What is known of every row of the current grid, [n, g] each (see `compaction`)."""

    row: Int[Array, "n g"]  # which of its shard's rows of the batch; out of range in an empty slot
    key: Key[Array, "n g"]
    limit: Int[Array, "n g"]
    token: Int[Array, "n g"]  # the last one sampled
    running: Bool[Array, "n g"]
    stopped: Bool[Array, "n g"]
    tokens: Int[Array, "n g T"]
    logprobs: Float[Array, "n g T"]
    lengths: Int[Array, "n g"]


@struct.dataclass
class _Tiles:
    """What the rows of a tile share."""

    prompt: Int[Array, " n"]  # which prompt of the tile's shard
    lengths: Int[Array, " n"]  # of the prompt
    caches: list[PromptCache]  # per layer


@partial(jax.jit, static_argnames=("config", "sampling", "stops", "pad"))
def rollout(
    params: Params,
    prompts: PromptBatch,
    key: Key[Array, ""],
    limits: Int[Array, "P G"] | None = None,
    *,
    config: DeviceConfig,
    sampling: SamplingConfig,
    stops: tuple[int, ...],
    pad: int,
) -> Rollout:
    """Samples `sampling.group` responses to each prompt.

    Each prompt is prefilled once. A `while_loop` decodes one token of every row at a time; it runs
    once per grid of `compaction.grids`, until the rows still running fit into the next one.

    Args:
        params: the device LLM's weights.
        prompts: the batch; its ids select the random streams.
        key: folded from (seed, step) by the caller, see `step_key`.
        limits: the most tokens of each response, from 1 to T; T if not given.
        config: the shape of the device LLM.
        sampling: group size, lengths, temperature. At temperature 0 all samples are greedy and
            their log-probs are those at temperature 1.
        stops: ids of the tokens that end a response.
        pad: id written after the end.

    Returns:
        The responses with the log-probs of their tokens under the sampling temperature.
    """
    P, (G, T) = prompts.ids.shape[0], (sampling.group, sampling.response_tokens)
    D = shards_in_context(P)
    if sampling.compute_dtype is not None:
        config = dataclasses.replace(config, compute_dtype=sampling.compute_dtype)
    weights = model.decode_weights(params, config, prompts.tokens.shape[1] + T)
    hidden, prompt_caches = model.prefill(params, config, prompts.tokens, prompts.lengths)
    tiles = _Tiles(
        prompt=jnp.arange(P) % (P // D),
        lengths=prompts.lengths,
        caches=prompt_caches,
    )
    rows = _first_rows(prompts, key, limits, sampling, D, pad)
    scores = model.logits_first(weights, hidden.T[..., None])
    scores = jnp.broadcast_to(scores, (scores.shape[0], P, G))
    rows = _sample(rows, scores, jnp.int32(0), sampling.temperature, stops, pad)
    caches = model.empty_caches(config, P, G, max(T - 1, 1), sampling.cache_tokens)
    step, caches = jnp.int32(1), jax.tree.map(_pin, caches)
    finished = rows  # in the order of the batch; rows that leave the grid are written here

    def decode(state, tiles):
        step, rows, caches = state
        hidden, caches = model.decode(
            weights, config, rows.token, step - 1, tiles.lengths, tiles.caches, caches
        )
        scores = model.logits_first(weights, hidden)
        return step + 1, _sample(rows, scores, step, sampling.temperature, stops, pad), caches

    def goes_on(state, tiles, smaller):
        step, rows, _ = state
        running = (step < T) & jnp.any(rows.running)
        if smaller is None:
            return running
        needed = tiles_needed(by_shard(tiles.prompt, D), by_shard(rows.running, D), P // D, smaller)
        return running & jnp.any(needed > smaller.tiles)

    chain = grids(P // D, G, sampling.shrink)
    for smaller in [*chain[1:], None]:
        step, rows, caches = jax.lax.while_loop(
            partial(goes_on, tiles=tiles, smaller=smaller),
            partial(decode, tiles=tiles),
            (step, rows, caches),
        )
        finished = _write(finished, rows, D)
        if smaller is not None:
            packing = pack(by_shard(tiles.prompt, D), by_shard(rows.running, D), P // D, smaller)
            rows, tiles = _repack(rows, tiles, packing)
            # Where nothing runs any more there is nothing to move.
            filled = jnp.where(jnp.any(rows.running), step - 1, 0)
            caches = _regroup(caches, packing, filled)
    return Rollout(finished.tokens, finished.logprobs, finished.lengths, finished.stopped)


def step_key(seed: int, step: int) -> Key[Array, ""]:
    """The key of one training step: folded from the run's seed and the step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def sample_keys(key: Key[Array, ""], ids: Int[Array, " P"], G: int) -> Key[Array, "P G"]:
    """One key per response: folded from the step's key, the prompt's id and the sample's index."""
    fold = jax.random.fold_in
    by_prompt = jax.vmap(fold, (None, 0))(key, ids)
    return jax.vmap(jax.vmap(fold, (None, 0)), (0, None))(by_prompt, jnp.arange(G))


def _first_rows(prompts, key, limits, sampling: SamplingConfig, D: int, pad: int) -> _Rows:
    """No token sampled yet."""
    P, (G, T) = prompts.ids.shape[0], (sampling.group, sampling.response_tokens)
    rows = _Rows(
        row=(jnp.arange(P * G) % (P * G // D)).reshape(P, G),
        key=sample_keys(key, prompts.ids, G),
        limit=jnp.full((P, G), T) if limits is None else limits,
        token=jnp.full((P, G), pad),
        running=jnp.ones((P, G), bool),
        stopped=jnp.zeros((P, G), bool),
        tokens=jnp.full((P, G, T), pad),
        logprobs=jnp.zeros((P, G, T), jnp.float32),
        lengths=jnp.zeros((P, G), jnp.int32),
    )
    return jax.tree.map(lambda x: constrain(x, "prompts"), rows)


def _sample(rows: _Rows, scores, step, temperature: float, stops, pad: int) -> _Rows:
    """The rows with their token number `step`, drawn from its logits [V, n, g]."""
    if temperature == 0:
        tokens, logprobs = categorical.argmax(scores)
    else:
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(rows.key, step)
        tokens, logprobs = categorical.sample(keys, scores / temperature)
    tokens = jnp.where(rows.running, tokens, pad)
    logprobs = jnp.where(rows.running, logprobs, 0.0)
    stopped = rows.running & jnp.isin(tokens, jnp.array(stops))
    write = partial(jax.lax.dynamic_update_index_in_dim, index=step, axis=2)
    return rows.replace(
        token=tokens,
        running=rows.running & ~stopped & (step + 1 < rows.limit),
        stopped=rows.stopped | stopped,
        tokens=write(rows.tokens, tokens),
        logprobs=write(rows.logprobs, logprobs),
        lengths=rows.lengths + rows.running,
    )


def _write(finished: _Rows, rows: _Rows, D: int) -> _Rows:
    """All that the rows of the current grid hold, written to their places in the batch."""

    def write(old, new):
        # Shard by shard, so that no row leaves its shard.
        flat = lambda x: x.reshape(D, -1, *x.shape[2:])  # noqa: E731
        place = jax.vmap(lambda old, at, new: old.at[at].set(new, mode="drop"))
        return place(flat(old), flat(rows.row), flat(new)).reshape(old.shape)

    return jax.tree.map(write, finished, rows)


def _repack(rows: _Rows, tiles: _Tiles, packing: Packing) -> tuple[_Rows, _Tiles]:
    """The rows still running, and their tiles, in the next grid."""
    filled = packing.filled.reshape(-1, packing.filled.shape[-1])
    rows = jax.tree.map(lambda x: take_rows(x, packing), rows)
    nowhere = jnp.iinfo(jnp.int32).max
    rows = rows.replace(row=jnp.where(filled, rows.row, nowhere), running=rows.running & filled)
    return rows, jax.tree.map(lambda x: take_tiles(x, packing), tiles)


def _regroup(caches: list[list[Cache]], packing: Packing, filled) -> list[list[Cache]]:
    """The caches of the rows in the next grid; of `filled` positions, the others stay empty."""
    take = partial(take_rows, packing=packing)

    def one(cache, begin):
        shapes = jax.eval_shape(lambda cache: cache.regroup(take), cache)
        empty = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # noqa: E731
        new = jax.lax.cond(filled > begin, lambda: cache.regroup(take), empty)
        return jax.tree.map(_pin, new)

    ends = itertools.accumulate((cache.size for cache in caches[0]), initial=0)
    begins = list(ends)[:-1]
    return [[one(*pair) for pair in zip(layer, begins, strict=True)] for layer in caches]


def _pin(x: jax.Array) -> jax.Array:
    return constrain(x, "prompts", "kv_heads")
