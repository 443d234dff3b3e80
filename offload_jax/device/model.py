"""The device LLM as plain functions of its weights: forward for training, prefill and decode.

A batch is P prompts with G responses each. A prompt is right-padded to S tokens and computed once
for its whole group; response token t stands at position `prompt_length + t`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offload_jax.device import lora
from offload_jax.device.attention import (
    Cache,
    KeyValues,
    PromptCache,
    attend_causally,
    attend_step,
    product,
    rotate,
    rotate_first,
    rotation,
    stretches,
    write,
)
from offload_jax.device.config import MATRICES, DeviceConfig
from offload_jax.device.params import Params, abstract_params
from offload_jax.sharding import constrain, gathered


def forward(
    params: Params,
    config: DeviceConfig,
    prompts: Int[Array, "P S"],
    prompt_lengths: Int[Array, " P"],
    responses: Int[Array, "P G T"],
) -> Float[Array, "P G T D"]:
    """Final hidden states that predict each response token (see `token_logprobs`).

    State t comes from the token before response token t: the prompt's last token for t = 0. The
    response's last token is therefore never an input.
    """
    P, G, T = responses.shape
    S = prompts.shape[1]
    prompt_mask = jnp.arange(S) < prompt_lengths[:, None]
    prompt_rotation = rotation(jnp.arange(S)[None, None], config)
    own_rotation = rotation((prompt_lengths[:, None] + jnp.arange(T - 1))[:, None], config)

    def layer(streams, weights):
        x_prompt, x = streams
        queries, prompt_kv = _project(weights, config, x_prompt, prompt_rotation)
        mixed = attend_causally(queries, prompt_kv)
        x_prompt = _residuals(weights, config, x_prompt, mixed)

        queries, own = _project(weights, config, x, own_rotation)
        shared = jax.tree.map(lambda kv: kv[:, 0], prompt_kv)
        mixed = attend_causally(queries, own, shared, prompt_mask)
        return (x_prompt, _residuals(weights, config, x, mixed)), None

    streams = (
        _embed(params, config, prompts[:, None]),
        _embed(params, config, responses[..., :-1]),
    )
    layers = lora.with_adapters(params)
    layer = _gathering(layer, config)
    (x_prompt, x), _ = jax.lax.scan(_rematerialised(layer, config), streams, layers)
    last = jnp.take_along_axis(x_prompt, (prompt_lengths - 1)[:, None, None, None], axis=2)
    x = jnp.concatenate([jnp.broadcast_to(last, (P, G, *last.shape[2:])), x], axis=2)
    return _rms_norm(x, params["final_norm"], config)


def prefill(
    params: Params,
    config: DeviceConfig,
    prompts: Int[Array, "P S"],
    prompt_lengths: Int[Array, " P"],
) -> tuple[Float[Array, "P D"], list[PromptCache]]:
    """Final hidden states of each prompt's last token, and per layer the prompts' caches."""
    turns = rotation(jnp.arange(prompts.shape[1])[None, None], config)

    def layer(x, weights):
        queries, kv = _project(weights, config, x, turns)
        x = _residuals(weights, config, x, attend_causally(queries, kv))
        kept = jax.tree.map(lambda x: x[:, 0].astype(config.cache), kv)
        return x, PromptCache(kept.keys.swapaxes(2, 3), kept.values)

    layers = lora.with_adapters(params)
    layer = _gathering(layer, config)
    x, cache = jax.lax.scan(layer, _embed(params, config, prompts[:, None]), layers)
    last = jnp.take_along_axis(x[:, 0], (prompt_lengths - 1)[:, None, None], axis=1)[:, 0]
    return _rms_norm(last, params["final_norm"], config), _unstacked(cache, config.layers)


def decode(
    weights: Params,
    config: DeviceConfig,
    tokens: Int[Array, "P G"],
    step: Int[Array, ""],
    prompt_lengths: Int[Array, " P"],
    prompt_caches: list[PromptCache],
    caches: list[list[Cache]],
) -> tuple[Float[Array, "D P G"], list[list[Cache]]]:
    """Reads response token `step` of every row and writes its keys and values.

    Activations are features first, [D, P, G]: with few rows, weights [out, in] times activations
    is a product that streams the weights from memory in order (see docs/performance.md).

    Args:
        weights: from `decode_weights`.
        config: the shape of the device LLM.
        tokens: response token number `step` of every row.
        step: which response position `tokens` stand at; the same for all rows.
        prompt_lengths: real tokens of each prompt.
        prompt_caches: per layer, from `prefill`.
        caches: per layer, keys and values of the responses; positions below `step` are filled.

    Returns:
        Final hidden states, which predict the next token, and the caches with `step` filled.
    """
    prompt_mask = jnp.arange(prompt_caches[0].keys.shape[3]) < prompt_lengths[:, None]
    turns = jax.tree.map(lambda table: table[prompt_lengths + step], weights["rotation"])
    x = jnp.moveaxis(weights["embedding"][tokens], 2, 0)
    filled = []
    for layer, prompt_kv, cache in zip(weights["layers"], prompt_caches, caches, strict=True):
        x = constrain(x, None, "prompts")
        h = _rms_norm(x, layer["attention_norm"], config, axis=0)
        queries, keys, values = (_heads_first(layer, config, name, h) for name in _HEADS)
        cache = write(cache, rotate_first(keys, turns), values, step)
        queries = rotate_first(queries, turns)
        mixed = attend_step(queries, cache, step, prompt_kv, prompt_mask)
        x += _biased_first(_apply(layer["output"], mixed), layer.get("output_bias"))
        h = _rms_norm(x, layer["mlp_norm"], config, axis=0)
        hidden = jax.nn.silu(_apply(layer["gate"], h)) * _apply(layer["up"], h)
        x += _apply(layer["down"], constrain(hidden, "mlp", "prompts"))
        filled.append(cache)
    return _rms_norm(x, weights["final_norm"], config, axis=0), filled


def decode_weights(params: Params, config: DeviceConfig, positions: int) -> Params:
    """Weights as `decode` wants them, made once for many steps.

    Adapters are merged and layers unstacked; matrices are [out, in] in the compute dtype, so that
    `_apply` reads them in order; the head is [V, D]; the rotations of all positions are a table.
    The scales of norms keep their dtype, as they do in training.
    """
    params = lora.merge(params, config)
    specs = abstract_params(dataclasses.replace(config, lora=None))

    def gather(x, spec):
        # First narrowed, then gathered: half the bytes. Layers carry a leading L.
        vector = len(spec.axes) - (spec.axes[0] is None) == 1
        x = x if vector else x.astype(config.compute)
        return constrain(x, *spec.axes, use="rollout")

    params = jax.tree.map(gather, params, specs)
    layers = dict(params["layers"])
    for name, contracted in MATRICES.items():
        # [L, in..., out...] to [L, out..., in...]
        axes = range(1, layers[name].ndim)
        inputs, outputs = list(axes)[:contracted], list(axes)[contracted:]
        layers[name] = layers[name].transpose(0, *outputs, *inputs)
    head = params["embedding"] if config.tied_embeddings else params["head"].T
    weights = {**params, "head": head, "layers": _unstacked(layers, config.layers)}
    return {**weights, "rotation": rotation(jnp.arange(positions), config)}


def empty_caches(config: DeviceConfig, P: int, G: int, T: int, first: int) -> list[list[Cache]]:
    """Per layer, room for T positions of P x G responses, the first stretch of length `first`."""
    K, N = config.kv_heads, config.head_size

    def one(C):
        values = jnp.zeros((P, K, G, C, N), config.cache)
        return Cache(values.swapaxes(3, 4), values)

    return [[one(end - begin) for begin, end in stretches(T, first)] for _ in range(config.layers)]


def logits(
    params: Params, config: DeviceConfig, hidden: Float[Array, "*b D"]
) -> Float[Array, "*b V"]:
    """The language-model head, float32 out."""
    return _logits(_head(params, config), hidden)


def _head(params: Params, config: DeviceConfig) -> Float[Array, "V D"]:
    """The head in the compute dtype, gathered."""
    head = params["embedding"] if config.tied_embeddings else params["head"].T
    return gathered(head.astype(config.compute), ("vocabulary", "width"))


def _logits(head, hidden):
    return product("...d,vd->...v", hidden, head)


def logits_first(weights: Params, hidden: Float[Array, "D P G"]) -> Float[Array, "V P G"]:
    """`logits` with the vocabulary first, from `decode_weights`, as the sampler wants them."""
    D, P, G = hidden.shape
    return product("vd,dr->vr", weights["head"], hidden.reshape(D, P * G)).reshape(-1, P, G)


def token_logprobs(
    params: Params,
    config: DeviceConfig,
    hidden: Float[Array, "P G T D"],
    tokens: Int[Array, "P G T"],
    temperature: float = 1.0,
    chunk: int = 128,
) -> Float[Array, "P G T"]:
    """Log pi(token), float32, from `forward`'s hidden states, at a sampling temperature.

    The logits exist for `chunk` response positions at a time, in the backward pass too, where they
    are computed again.
    """
    head, T = _head(params, config), tokens.shape[2]

    def one(piece):
        hidden, tokens = piece
        return select_logprobs(_logits(head, hidden) / temperature, tokens)

    if chunk >= T:
        return one((hidden, tokens))

    def split(x):
        """[P, G, T, ...] as [pieces, P, G, chunk, ...], the last one padded."""
        x = jnp.pad(x, [(0, 0), (0, 0), (0, -T % chunk)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(*x.shape[:2], -1, chunk, *x.shape[3:]), 2, 0)

    # The head is gathered before the loop, once for all pieces.
    logprobs = jax.lax.map(jax.checkpoint(one), (split(hidden), split(tokens)))
    return jnp.moveaxis(logprobs, 0, 2).reshape(*tokens.shape[:2], -1)[..., :T]


def select_logprobs(scores: Float[Array, "*b V"], tokens: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Log softmax(scores) at `tokens`."""
    chosen = jnp.take_along_axis(scores, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(scores, axis=-1)


def _unstacked(tree: Any, layers: int) -> list:
    """A list of per-layer trees from one whose leaves carry a leading axis L."""
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(layers)]


def _gathering(layer, config: DeviceConfig):
    """`layer` on a layer's weights in the training state, gathered in the compute dtype."""
    axes = {name: spec.axes[1:] for name, spec in abstract_params(config)["layers"].items()}

    def gather(name, weight):
        if name not in MATRICES:  # norms, biases, adapters: small
            return weight
        return gathered(weight.astype(config.compute), axes[name])

    def wrapped(x, weights):
        return layer(x, {name: gather(name, weight) for name, weight in weights.items()})

    return wrapped


def _project(weights, config, x, turns):
    """Rotated queries [P, G, T, H, N] and rotated keys with values [P, G, K, T, N]."""
    h = _rms_norm(x, weights["attention_norm"], config)
    queries, keys, values = (_heads(weights, config, name, h) for name in _HEADS)
    queries = constrain(queries, "prompts", None, None, "heads", None)
    keys = rotate(keys, turns)
    kv = KeyValues(keys.swapaxes(2, 3), values.swapaxes(2, 3))
    return rotate(queries, turns), kv


def _residuals(weights, config, x, mixed):
    """Adds the attention output and the MLP to the residual stream."""
    x = x + _biased(_linear(weights, config, "output", mixed), weights.get("output_bias"))
    h = _rms_norm(x, weights["mlp_norm"], config)
    gate = jax.nn.silu(_linear(weights, config, "gate", h))
    hidden = constrain(gate * _linear(weights, config, "up", h), "prompts", None, None, "mlp")
    x = x + _linear(weights, config, "down", hidden)
    return constrain(x, "prompts", None, None, None)


_HEADS = ("query", "key", "value")


def _heads(weights, config, name, h):
    """Queries, keys or values [P, G, T, heads, N] before RoPE."""
    x = _biased(_linear(weights, config, name, h), weights.get(f"{name}_bias"))
    if f"{name}_norm" in weights:
        x = _rms_norm(x, weights[f"{name}_norm"], config)
    return x


def _heads_first(layer, config, name, h):
    """`_heads` with features first, [heads, N, P, G]."""
    x = _biased_first(_apply(layer[name], h), layer.get(f"{name}_bias"))
    if f"{name}_norm" in layer:
        x = _rms_norm(x, layer[f"{name}_norm"], config, axis=1)
    return x


def _biased(x, bias):
    return x if bias is None else x + bias.astype(x.dtype)


def _biased_first(x, bias):
    return x if bias is None else x + bias.astype(x.dtype)[..., None, None]


def _linear(weights, config, name, x):
    """A matrix of the layer, and its adapter where it has one."""
    contracted = MATRICES[name]
    out = _matmul(x, weights[name], contracted)
    if f"{name}_a" in weights:
        down = _matmul(x, weights[f"{name}_a"], contracted)
        out += lora.scale(config) * _matmul(down, weights[f"{name}_b"])
    return out


def _embed(params, config, tokens):
    return constrain(params["embedding"][tokens].astype(config.compute), "prompts")


def _rms_norm(x, scale, config, axis=-1):
    x32 = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(x32), axis=axis, keepdims=True)
    normed = x32 * jax.lax.rsqrt(variance + config.norm_epsilon)
    scale = scale.astype(jnp.float32)
    if axis >= 0:
        scale = scale.reshape(-1, *[1] * (x.ndim - 1 - axis))
    return (normed * scale).astype(config.compute)


def _apply(weight: jax.Array, x: jax.Array) -> jax.Array:
    """Contracts the last axes of the weight with the leading ones of x [..., P, G]."""
    contracted = x.ndim - 2
    kept = weight.shape[: weight.ndim - contracted]
    flat = weight.reshape(math.prod(kept), -1)
    return (flat @ x.reshape(flat.shape[1], -1)).reshape(*kept, *x.shape[-2:])


def _matmul(x: jax.Array, weight: jax.Array, contracted: int = 1) -> jax.Array:
    """Contracts the last axes of x with the first of the weight, as one plain matrix product.

    Laid flat, because XLA:CPU computes the weight's gradient up to twice as fast that way.
    """
    kept = x.shape[: x.ndim - contracted]
    flat = weight.reshape(math.prod(weight.shape[:contracted]), -1).astype(x.dtype)
    product = x.reshape(math.prod(kept), flat.shape[0]) @ flat
    return product.reshape(*kept, *weight.shape[contracted:])


def _rematerialised(layer, config: DeviceConfig):
    if config.remat == "none":
        return layer
    policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
    return jax.checkpoint(layer, policy=policies[config.remat])
