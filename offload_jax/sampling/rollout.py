"""Group rollouts: G sampled responses to each of P prompts, in one jitted program.

Randomness is `fold_in(seed key, step, prompt id, sample, position)`: a response depends neither on
where its prompt stands in the batch nor on the mesh, and a resumed run needs the step alone.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from offload_jax.device import model
from offload_jax.device.attention import Cache
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params
from offload_jax.settings import require
from offload_jax.sharding import constrain


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
    cache_segment: int = 32  # the decoder's cache grows by so many positions at a time

    def __post_init__(self):
        for name in ("group", "prompt_tokens", "response_tokens", "cache_segment"):
            require(getattr(self, name) >= 1, f"config.sampling.{name} must be at least 1.")
        require(self.temperature >= 0, "config.sampling.temperature must not be negative.")


@struct.dataclass
class _State:
    step: Int[Array, ""]
    scores: Float[Array, "P G V"]  # logits of the token at position `step`
    done: Bool[Array, "P G"]
    tokens: Int[Array, "P G T"]
    logprobs: Float[Array, "P G T"]
    lengths: Int[Array, "P G"]
    caches: list[Cache]


@partial(jax.jit, static_argnames=("config", "sampling", "stop", "pad"))
def rollout(
    params: Params,
    prompts: PromptBatch,
    key: Key[Array, ""],
    *,
    config: DeviceConfig,
    sampling: SamplingConfig,
    stop: int,
    pad: int,
) -> Rollout:
    """Samples `sampling.group` responses to each prompt.

    Each prompt is prefilled once. A `while_loop` decodes one token of every row at a time and ends
    when all rows have stopped; it runs once per cache segment, so that attention reads only the
    part of the cache that can be filled.

    Args:
        params: the device LLM's weights.
        prompts: the batch; its ids select the random streams.
        key: folded from (seed, step) by the caller, see `step_key`.
        config: the shape of the device LLM.
        sampling: group size, lengths, temperature. At temperature 0 all samples are greedy and
            their log-probs are those at temperature 1.
        stop: id of the token that ends a response.
        pad: id written after the end.

    Returns:
        The responses with the log-probs of their tokens under the sampling temperature.
    """
    P, (G, T) = prompts.ids.shape[0], (sampling.group, sampling.response_tokens)
    weights = _rollout_weights(params, config)
    keys = sample_keys(key, prompts.ids, G)
    scores, prompt_cache = model.prefill(params, config, prompts.tokens, prompts.lengths)
    prompt_caches = model.unstack_layers(prompt_cache, config.layers)

    def sample(state: _State) -> _State:
        step = state.step
        tokens, logprobs = _sample(state.scores, keys, step, sampling.temperature)
        tokens = jnp.where(state.done, pad, tokens)
        logprobs = jnp.where(state.done, 0.0, logprobs)
        done = state.done | (tokens == stop)
        write = partial(jax.lax.dynamic_update_index_in_dim, index=step, axis=2)
        scores, caches = model.decode(
            weights, config, tokens, step, prompts.lengths, prompt_caches, state.caches
        )
        return _State(
            step=step + 1,
            scores=scores,
            done=done,
            tokens=write(state.tokens, tokens),
            logprobs=write(state.logprobs, logprobs),
            lengths=state.lengths + ~state.done,
            caches=caches,
        )

    state = _State(
        step=jnp.int32(0),
        scores=jnp.broadcast_to(scores[:, None], (P, G, scores.shape[-1])),
        done=jnp.zeros((P, G), bool),
        tokens=constrain(jnp.full((P, G, T), pad, jnp.int32), "prompts"),
        logprobs=constrain(jnp.zeros((P, G, T), jnp.float32), "prompts"),
        lengths=jnp.zeros((P, G), jnp.int32),
        caches=model.empty_caches(config, P, G),
    )
    for end in [*range(sampling.cache_segment, T, sampling.cache_segment), T]:
        state = state.replace(caches=[_pin(cache.grow(end)) for cache in state.caches])
        state = jax.lax.while_loop(
            lambda s, end=end: (s.step < end) & ~jnp.all(s.done),
            sample,
            state,
        )
    return Rollout(state.tokens, state.logprobs, state.lengths, state.done)


def step_key(seed: int, step: int) -> Key[Array, ""]:
    """The key of one training step: folded from the run's seed and the step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def sample_keys(key: Key[Array, ""], ids: Int[Array, " P"], G: int) -> Key[Array, "P G"]:
    """One key per response: folded from the step's key, the prompt's id and the sample's index."""
    fold = jax.random.fold_in
    by_prompt = jax.vmap(fold, (None, 0))(key, ids)
    return jax.vmap(jax.vmap(fold, (None, 0)), (0, None))(by_prompt, jnp.arange(G))


def _sample(scores, keys, step, temperature):
    """Next tokens [P, G] and their log-probs, float32."""
    if temperature == 0:
        tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        return tokens, model.select_logprobs(scores, tokens)
    scores = scores / temperature
    position_keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(keys)
    tokens = jax.vmap(jax.vmap(jax.random.categorical))(position_keys, scores).astype(jnp.int32)
    return tokens, model.select_logprobs(scores, tokens)


def _rollout_weights(params: Params, config: DeviceConfig) -> Params:
    """Weights as decoding wants them, made once per rollout: layers unstacked, compute dtype.

    The scales of norms keep their dtype, as they do in training.
    """
    unstacked = {**params, "layers": model.unstack_layers(params["layers"], config.layers)}
    return jax.tree.map(lambda x: x if x.ndim == 1 else x.astype(config.compute), unstacked)


def _pin(cache: Cache) -> Cache:
    return jax.tree.map(lambda x: constrain(x, "prompts", None, "kv_heads"), cache)
