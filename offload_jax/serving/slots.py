"""The rows of a serving batch: a slot holds one response under way, and another when that ends.

A slot keeps the keys and values of all its tokens so far, prompt and response alike, as if they
were a prompt. A chunk of a few decoding steps is then a short response to it: `model.decode` serves
slots as it serves rollouts, with all rows at the same step of the chunk, and at the chunk's end
each row's new keys and values are appended at its own length.

Where a response's chunks begin depends on nothing but itself, and its randomness is folded as in
`sampling.rollout`: it is the same whoever else is served.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from offload_jax.device import model
from offload_jax.device.attention import Cache, PromptCache
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params
from offload_jax.sampling import categorical
from offload_jax.sampling.rollout import sample_keys, step_key
from offload_jax.sharding import constrain


@struct.dataclass
class Slots:
    """n slots, each with room for C positions and a response of T tokens."""

    caches: list[PromptCache]  # per layer, [n, K, N, C] and [n, K, C, N]
    filled: Int[Array, " n"]  # positions of the caches that count
    key: Key[Array, " n"]
    temperature: Float[Array, " n"]  # 0: greedy
    limit: Int[Array, " n"]  # the most tokens of the response
    token: Int[Array, " n"]  # the last one sampled, not yet in the caches
    running: Bool[Array, " n"]
    stopped: Bool[Array, " n"]  # by a stop token
    tokens: Int[Array, "n T"]  # the response, `lengths` of it
    lengths: Int[Array, " n"]


@struct.dataclass
class Entrant:
    """A prompt on its way into a slot, padded on the right to one of a few widths S."""

    slot: Int[Array, ""]
    tokens: Int[Array, " S"]
    length: Int[Array, ""]  # of the prompt, at least 1
    seed: UInt[Array, ""]  # the low bits of the seed: jax.random.key reads no others
    id: Int[Array, ""]  # of the prompt, folded into the key
    temperature: Float[Array, ""]
    limit: Int[Array, ""]


@partial(jax.jit, static_argnames=("config", "slots", "positions", "T"))
def empty_slots(config: DeviceConfig, slots: int, positions: int, T: int) -> Slots:
    """Slots in which nothing runs."""
    keys = jnp.zeros((slots, config.kv_heads, config.head_size, positions), config.cache)
    zeros = jnp.zeros(slots, jnp.int32)
    return _pinned(
        Slots(
            caches=[PromptCache(keys, keys.swapaxes(2, 3)) for _ in range(config.layers)],
            filled=zeros,
            key=jax.random.split(jax.random.key(0), slots),
            temperature=zeros.astype(jnp.float32),
            limit=zeros,
            token=zeros,
            running=zeros.astype(bool),
            stopped=zeros.astype(bool),
            tokens=jnp.zeros((slots, T), jnp.int32),
            lengths=zeros,
        )
    )


@partial(jax.jit, static_argnames=("config", "stops"), donate_argnames="slots")
def admit(
    params: Params,
    weights: Params,
    slots: Slots,
    entrant: Entrant,
    *,
    config: DeviceConfig,
    stops: tuple[int, ...],
) -> Slots:
    """The slots with a prompt and its first token in one of them.

    Args:
        params: the policy's weights, for the prefill.
        weights: the same from `model.decode_weights`.
        slots: given up.
        entrant: the prompt; each width has a program of its own.
        config: the shape of the device LLM.
        stops: ids of the tokens that end a response.
    """
    one = jax.tree.map(lambda x: x[None], entrant)
    hidden, caches = model.prefill(params, config, one.tokens, one.length)
    key = sample_keys(step_key(entrant.seed, 0), one.id, 1)[:, 0]
    row = Slots(
        caches=caches,
        filled=one.length,
        key=key,
        temperature=one.temperature,
        limit=one.limit,
        token=jnp.zeros(1, jnp.int32),
        running=jnp.ones(1, bool),
        stopped=jnp.zeros(1, bool),
        tokens=jnp.zeros((1, slots.tokens.shape[1]), jnp.int32),
        lengths=jnp.zeros(1, jnp.int32),
    )
    row = _sampled(row, model.logits_first(weights, hidden.T[..., None]), stops)
    return _written(slots, row, entrant.slot)


@partial(jax.jit, static_argnames=("config", "stops", "steps", "rows"), donate_argnames="slots")
def advance(
    weights: Params,
    slots: Slots,
    wanted: Bool[Array, " n"],
    *,
    config: DeviceConfig,
    stops: tuple[int, ...],
    steps: int,
    rows: int,
) -> Slots:
    """The slots some tokens later.

    Args:
        weights: from `model.decode_weights`.
        slots: given up.
        wanted: whose response is still waited for; the others end where they are.
        config: the shape of the device LLM.
        stops: ids of the tokens that end a response.
        steps: the most tokens of each row; fewer if all of them end before.
        rows: so many slots, the first ones, take part; nothing may run in the others.
    """
    part = jax.tree.map(lambda x: x[:rows], slots)
    part = part.replace(running=part.running & wanted[:rows])

    def decode(state):
        step, part, recent = state
        hidden, recent = model.decode(
            weights, config, part.token[:, None], step, part.filled, part.caches, recent
        )
        return step + 1, _sampled(part, model.logits_first(weights, hidden), stops), recent

    step, part, recent = jax.lax.while_loop(
        lambda state: (state[0] < steps) & jnp.any(state[1].running),
        decode,
        (jnp.int32(0), part, _short_caches(config, rows, 1, steps)),
    )
    caches = [
        _appended(cache, new, part.filled, steps)
        for cache, (new,) in zip(part.caches, recent, strict=True)
    ]
    return _written(slots, part.replace(caches=caches, filled=part.filled + step), 0)


@partial(jax.jit, static_argnames="config")
def opening_logprobs(
    weights: Params,
    slots: Slots,
    slot: Int[Array, ""],
    length: Int[Array, ""],
    token: Int[Array, ""],
    openings: Int[Array, "2 R"],
    counted: Bool[Array, "2 R"],
    *,
    config: DeviceConfig,
) -> Float[Array, " 2"]:
    """Log pi of two openings after the beginning of what a slot holds, each summed.

    Args:
        weights: from `model.decode_weights`.
        slots: the slots.
        slot: which one.
        length: how many tokens (prompt and response) stand before `token`.
        token: the one that the openings follow.
        openings: their tokens, padded on the right.
        counted: which of the tokens are real.
        config: the shape of the device LLM.
    """
    R = openings.shape[1]
    held = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1), slots.caches)
    read = jnp.concatenate([jnp.full((2, 1), token), openings[:, :-1]], axis=1)

    def step(recent, inputs):
        at, tokens, following = inputs
        hidden, recent = model.decode(weights, config, tokens[None], at, length[None], held, recent)
        scores = model.logits_first(weights, hidden)[:, 0].T
        return recent, model.select_logprobs(scores, following)

    inputs = (jnp.arange(R), read.T, openings.T)
    _, logprobs = jax.lax.scan(step, _short_caches(config, 1, 2, R), inputs)
    return jnp.where(counted.T, logprobs, 0.0).sum(axis=0)


def _sampled(slots: Slots, scores: Float[Array, "V n 1"], stops: tuple[int, ...]) -> Slots:
    """The slots with one more token of every running row, drawn from its logits."""
    token = jnp.where(slots.running, _draw(slots, scores), slots.token)
    stopped = slots.running & jnp.isin(token, jnp.array(stops))
    here = slots.running[:, None] & (jnp.arange(slots.tokens.shape[1]) == slots.lengths[:, None])
    lengths = slots.lengths + slots.running
    return slots.replace(
        token=token,
        running=slots.running & ~stopped & (lengths < slots.limit),
        stopped=slots.stopped | stopped,
        tokens=jnp.where(here, token[:, None], slots.tokens),
        lengths=lengths,
    )


def _draw(slots: Slots, scores: Float[Array, "V n 1"]) -> Int[Array, " n"]:
    """A token of every row at its own temperature."""
    warm = slots.temperature > 0

    def sampled():
        keys = jax.vmap(jax.random.fold_in)(slots.key, slots.lengths)
        divisor = jnp.where(warm, slots.temperature, 1.0)[:, None]
        return categorical.sample(keys[:, None], scores / divisor)[0][:, 0]

    likeliest = categorical.argmax(scores)[0][:, 0]
    drawn = jax.lax.cond(jnp.any(warm & slots.running), sampled, lambda: likeliest)
    return jnp.where(warm, drawn, likeliest)


def _short_caches(config: DeviceConfig, P: int, G: int, steps: int) -> list[list[Cache]]:
    """Per layer, room for a few positions in one stretch."""
    caches = model.empty_caches(config, P, G, steps, first=steps + 16)
    return jax.tree.map(lambda x: constrain(x, "prompts", "kv_heads"), caches)


def _appended(cache: PromptCache, new: Cache, filled: Int[Array, " n"], steps: int) -> PromptCache:
    """A layer's cache with a chunk's keys and values behind what each slot has filled."""

    def put(x, new, at, axis):
        return jax.lax.dynamic_update_slice_in_dim(x, new, at, axis)

    keys, values = new.keys[:, :, 0, :, :steps], new.values[:, :, 0, :steps]
    return PromptCache(
        jax.vmap(partial(put, axis=2))(cache.keys, keys, filled),
        jax.vmap(partial(put, axis=1))(cache.values, values, filled),
    )


def _written(slots: Slots, some: Slots, first: Int[Array, ""] | int) -> Slots:
    """The slots with some of them, from `first` on, replaced."""

    def put(x, new):
        return jax.lax.dynamic_update_slice(x, new, (first, *[0] * (x.ndim - 1)))

    return _pinned(jax.tree.map(put, slots, some))


def _pinned(slots: Slots) -> Slots:
    """In the same sharding after every program, so that none is compiled for another."""
    pinned = jax.tree.map(lambda x: constrain(x, "prompts"), slots)
    return pinned.replace(
        caches=jax.tree.map(lambda x: constrain(x, "prompts", "kv_heads"), slots.caches)
    )
