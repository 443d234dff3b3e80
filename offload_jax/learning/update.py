"""The update: ascend the weighted sum of response log-probabilities, micro-batch by micro-batch.

Every objective comes down to one weight per response and, for GRPO and its kin, a clipping range;
this file knows nothing else of them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from offload_jax.device import lora, model
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params, param_shapes
from offload_jax.learning.grpo import clipped_surrogate
from offload_jax.sampling.rollout import PromptBatch
from offload_jax.sharding import constrain, sharding_of


@struct.dataclass
class TrainState:
    """What a checkpoint holds of the device LLM in training."""

    params: Params
    optimizer: optax.OptState
    step: Int[Array, ""]


@struct.dataclass
class WeightedResponses:
    """Responses and how much the log-probability of each counts."""

    prompts: PromptBatch
    tokens: Int[Array, "P G T"]
    lengths: Int[Array, "P G"]
    weights: Float[Array, "P G"]  # groups, or parts, whose weights are all zero cost nothing
    sampled: Float[Array, "P G T"] | None = None  # the sampler's log-probs: pi_old


def init_state(
    params: Params, optimizer: optax.GradientTransformation, config: DeviceConfig, mesh: Mesh
) -> TrainState:
    """Step 0; the optimiser's state is sharded like the weights it belongs to.

    With adapters (`device.lora`) they alone have one.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state_shapes(optimizer, config, mesh))
    _, trained = lora.split(params)
    state = jax.jit(optimizer.init, out_shardings=shardings.optimizer)(trained)
    return TrainState(params, state, jax.device_put(jnp.int32(0), shardings.step))


def state_shapes(
    optimizer: optax.GradientTransformation, config: DeviceConfig, mesh: Mesh
) -> TrainState:
    """A state without its numbers: `jax.ShapeDtypeStruct`s, sharded over the mesh."""
    params = param_shapes(config, mesh)
    _, trained = lora.split(params)
    replicated = sharding_of(mesh, (), ())

    def shape(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = optax.tree_map_params(
        optimizer,
        lambda x, param: shape(x, param.sharding),
        jax.eval_shape(optimizer.init, trained),
        trained,
        transform_non_params=lambda x: shape(x, replicated),
    )
    return TrainState(params, state, jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated))


@partial(
    jax.jit,
    static_argnames=(
        "config",
        "optimizer",
        "temperature",
        "micro_prompts",
        "micro_group",
        "length_buckets",
        "importance_cap",
        "clip",
        "repeats",
    ),
    donate_argnames="state",
)
def update(
    state: TrainState,
    batch: WeightedResponses,
    *,
    config: DeviceConfig,
    optimizer: optax.GradientTransformation,
    temperature: float = 1.0,
    micro_prompts: int,
    micro_group: int | None = None,
    length_buckets: int = 1,
    importance_cap: float | None = None,
    clip: float | None = None,
    repeats: int = 1,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Optimiser steps on one batch: ascend `sum(weights * log pi(response))`, or the surrogate.

    Nothing is divided here, so that the size of a micro-batch does not change the gradient. If all
    weights are zero there is nothing to learn from: weights and optimiser stay as they are.

    Args:
        state: donated.
        batch: P prompts with G weighted responses each.
        config: the shape of the device LLM.
        optimizer: from `make_optimizer`.
        temperature: of the policy, that is of the sampler.
        micro_prompts: prompts per micro-batch, a divisor of P.
        micro_group: responses to each of them in it, a divisor of G; None for all. With fewer,
            those of a group that are alike in length are together and a micro-batch may have a
            prompt more than once.
        length_buckets: the number of response lengths that the program is compiled for.
        importance_cap: if given, the gradient of each token's log-probability counts by
            min(pi_trainer / pi_sampler, cap): truncated importance sampling, for a sampler of
            lower precision than the trainer.
        clip: if given, GRPO's clipped surrogate is ascended instead (`grpo.clipped_surrogate`).
        repeats: optimiser steps on this batch; the state's step counts it once.

    Returns:
        The next state; metrics of the first optimiser step: the loss, the gradient's norm, the
        number of prompts computed on and, where the sampler's log-probs are given, their largest
        difference from the trainer's; with `clip`, the share of tokens clipped in the last one.
    """
    options = {
        "config": config,
        "temperature": temperature,
        "micro_prompts": micro_prompts,
        "micro_group": micro_group,
        "length_buckets": length_buckets,
        "importance_cap": importance_cap,
        "clip": clip,
    }

    frozen, trained = lora.split(state.params)

    def one(carry, _):
        trained, opt = carry
        gradient, stats = gradient_of({**frozen, **trained}, batch, **options)

        def apply():
            updates, new = optimizer.update(gradient, opt, trained)
            return optax.apply_updates(trained, updates), new

        carry = jax.lax.cond(stats["prompts_computed"] > 0, apply, lambda: (trained, opt))
        return carry, {"gradient_norm": optax.tree.norm(gradient), **stats}

    (trained, opt), metrics = jax.lax.scan(one, (trained, state.optimizer), length=repeats)
    metrics = {name: x[-1 if name == "clipped" else 0] for name, x in metrics.items()}
    return TrainState({**frozen, **trained}, opt, state.step + 1), metrics


def gradient_of(
    params: Params,
    batch: WeightedResponses,
    *,
    config: DeviceConfig,
    temperature: float = 1.0,
    micro_prompts: int,
    micro_group: int | None = None,
    length_buckets: int = 1,
    importance_cap: float | None = None,
    clip: float | None = None,
) -> tuple[Params, dict[str, Float[Array, ""]]]:
    """Gradient of `-sum(weights * log pi(response))` or of minus the surrogate, and statistics.

    Float32, of all weights or, where there are adapters, of them alone; the arguments are those of
    `update`.

    Groups, or with `micro_group` parts of them, without a weight come first in the order and are
    skipped; the others are sorted by their longest response, and each bucket of lengths has its own
    loop, so that short responses are not computed at full length.
    """
    G = batch.lengths.shape[1]
    parts = G // (micro_group or G)
    batch, needed = _in_micro_batches(_in_parts(batch, parts), micro_prompts)
    T = batch.tokens.shape[-1]
    frozen, trained = lora.split(params)
    loss = partial(
        _micro_loss,
        config=config,
        temperature=temperature,
        importance_cap=importance_cap,
        clip=clip,
    )

    def accumulate(m, carry, length):
        gradient, total, stats = carry
        micro = jax.tree.map(lambda x: x[m], batch)
        (micro_loss, micro_stats), micro_gradient = jax.value_and_grad(loss, has_aux=True)(
            trained, frozen, _cut(micro, length)
        )
        gradient = jax.tree.map(lambda a, g: a + g.astype(a.dtype), gradient, micro_gradient)
        combined = {
            name: jnp.maximum(x, micro_stats[name])
            if name == "logprob_gap"
            else x + micro_stats[name]
            for name, x in stats.items()
        }
        return gradient, total + micro_loss, combined

    names = [] if batch.sampled is None else ["logprob_gap"]
    names += [] if clip is None else ["clipped", "tokens"]
    stats = {name: jnp.float32(0) for name in names}
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trained)
    carry = (zeros, jnp.float32(0), stats)
    start = jnp.sum(needed <= 0)
    for bucket in range(1, length_buckets + 1):
        length = -(-T * bucket // length_buckets)
        end = jnp.sum(needed <= length)
        body = partial(accumulate, length=length)
        if needed.size == 1 and length_buckets > 1:
            # Loops with equal bodies are no choice: the compiler moves what does not depend on
            # the index out of all of them, and computes every length.
            carry = jax.lax.cond(start < end, partial(body, 0), lambda carry: carry, carry)
        else:
            carry = jax.lax.fori_loop(start, end, body, carry)
        start = end
    gradient, total, stats = carry
    if clip is not None:
        stats["clipped"] /= jnp.maximum(stats.pop("tokens"), 1)
    computed = jnp.sum(needed > 0) * micro_prompts / parts
    return gradient, {"loss": total, "prompts_computed": computed.astype(jnp.float32), **stats}


def _micro_loss(
    trained, frozen, batch: WeightedResponses, *, config, temperature, importance_cap, clip
):
    params = lora.join(frozen, trained)
    hidden = model.forward(
        params, config, batch.prompts.tokens, batch.prompts.lengths, batch.tokens
    )
    logprobs = model.token_logprobs(params, config, hidden, batch.tokens, temperature)
    real = jnp.arange(batch.tokens.shape[-1]) < batch.lengths[..., None]
    stats = {}
    if batch.sampled is not None:
        stats["logprob_gap"] = jnp.where(real, jnp.abs(logprobs - batch.sampled), 0.0).max()
    if clip is not None:
        gain, clipped = clipped_surrogate(logprobs, batch.sampled, batch.weights, clip)
        counted = real & (batch.weights != 0)[..., None]
        tokens = jnp.sum(counted, dtype=jnp.float32)
        stats |= {"clipped": jnp.sum(clipped * counted), "tokens": tokens}
    elif importance_cap is not None:
        ratio = jnp.minimum(jnp.exp(logprobs - batch.sampled), importance_cap)
        gain = batch.weights[..., None] * jax.lax.stop_gradient(ratio) * logprobs
    else:
        gain = batch.weights[..., None] * logprobs
    return -jnp.sum(jnp.where(real, gain, 0.0)), stats


def _in_parts(batch: WeightedResponses, parts: int) -> WeightedResponses:
    """Groups [P, G] as [P parts, G / parts]: a prompt's responses from the shortest up."""
    if parts == 1:
        return batch
    P, G = batch.lengths.shape
    order = jnp.argsort(_needed(batch), axis=1)

    def split(x):
        x = jnp.take_along_axis(x, order.reshape(P, G, *[1] * (x.ndim - 2)), axis=1)
        return constrain(x.reshape(P * parts, G // parts, *x.shape[2:]), "prompts")

    def repeat(x):
        return constrain(jnp.repeat(x, parts, axis=0), "prompts")

    prompts = jax.tree.map(repeat, batch.prompts)
    return jax.tree.map(split, batch.replace(prompts=None)).replace(prompts=prompts)


def _needed(batch: WeightedResponses) -> Int[Array, "P G"]:
    """How many tokens of each response there is a gradient of."""
    return jnp.where(batch.weights != 0, batch.lengths, 0)


def _in_micro_batches(batch: WeightedResponses, micro_prompts: int):
    """The batch as [M, micro_prompts, ...], and the response length each micro-batch needs."""
    needed = _needed(batch).max(axis=1)
    order = jnp.argsort(needed)

    def split(x):
        x = x[order].reshape(-1, micro_prompts, *x.shape[1:])
        return constrain(x, None, "prompts")

    return jax.tree.map(split, batch), needed[order].reshape(-1, micro_prompts).max(axis=1)


def _cut(batch: WeightedResponses, T: int) -> WeightedResponses:
    sampled = None if batch.sampled is None else batch.sampled[..., :T]
    return batch.replace(tokens=batch.tokens[..., :T], sampled=sampled)
