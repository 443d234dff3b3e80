"""The update: ascend the weighted sum of response log-probabilities, micro-batch by micro-batch.

Every objective (GAPG, supervised learning) comes down to one weight per response; this file knows
nothing else of them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from offload_jax.device import model
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params, param_shardings
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
    weights: Float[Array, "P G"]  # rows of weight zero cost nothing if their whole group is zero
    sampled: Float[Array, "P G T"] | None = None  # the sampler's log-probs, to compare


def init_state(
    params: Params, optimizer: optax.GradientTransformation, config: DeviceConfig, mesh: Mesh
) -> TrainState:
    """Step 0; the optimiser's state is sharded like the weights it belongs to."""
    shapes = jax.eval_shape(optimizer.init, params)
    replicated = sharding_of(mesh, (), ())
    shardings = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        shapes,
        param_shardings(config, mesh),
        transform_non_params=lambda _: replicated,
    )
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    return TrainState(params, state, jax.device_put(jnp.int32(0), replicated))


@partial(
    jax.jit,
    static_argnames=(
        "config",
        "optimizer",
        "temperature",
        "micro_prompts",
        "length_buckets",
        "importance_cap",
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
    length_buckets: int = 1,
    importance_cap: float | None = None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimiser step on `-sum(weights * log pi(response))`.

    Nothing is divided here, so that the size of a micro-batch does not change the gradient. If all
    weights are zero there is nothing to learn from: weights and optimiser stay as they are.

    Args:
        state: donated.
        batch: P prompts with G weighted responses each.
        config: the shape of the device LLM.
        optimizer: from `make_optimizer`.
        temperature: of the policy, that is of the sampler.
        micro_prompts: prompts per micro-batch, a divisor of P.
        length_buckets: the number of response lengths that the program is compiled for.
        importance_cap: if given, the gradient of each token's log-probability counts by
            min(pi_trainer / pi_sampler, cap): truncated importance sampling, for a sampler of
            lower precision than the trainer.

    Returns:
        The next state; metrics: the loss, the gradient's norm, the number of prompts computed on
        and, where the sampler's log-probs are given, their largest difference from the trainer's.
    """
    gradient, stats = gradient_of(
        state.params,
        batch,
        config=config,
        temperature=temperature,
        micro_prompts=micro_prompts,
        length_buckets=length_buckets,
        importance_cap=importance_cap,
    )

    def apply():
        updates, new = optimizer.update(gradient, state.optimizer, state.params)
        return optax.apply_updates(state.params, updates), new

    learnt = stats["prompts_computed"] > 0
    params, opt = jax.lax.cond(learnt, apply, lambda: (state.params, state.optimizer))
    metrics = {"gradient_norm": optax.tree.norm(gradient), **stats}
    return TrainState(params, opt, state.step + 1), metrics


def gradient_of(
    params: Params,
    batch: WeightedResponses,
    *,
    config: DeviceConfig,
    temperature: float = 1.0,
    micro_prompts: int,
    length_buckets: int = 1,
    importance_cap: float | None = None,
) -> tuple[Params, dict[str, Float[Array, ""]]]:
    """Gradient of `-sum(weights * log pi(response))`, float32, and statistics.

    Groups without a weight come first in the order and are skipped; the others are sorted by their
    longest response, and each bucket of lengths has its own loop, so that short responses are not
    computed at full length.
    """
    batch, needed = _in_micro_batches(batch, micro_prompts)
    T = batch.tokens.shape[-1]
    loss = partial(
        _micro_loss, config=config, temperature=temperature, importance_cap=importance_cap
    )

    def accumulate(m, carry, length):
        gradient, total, stats = carry
        micro = jax.tree.map(lambda x: x[m], batch)
        (micro_loss, micro_stats), micro_gradient = jax.value_and_grad(loss, has_aux=True)(
            params, _cut(micro, length)
        )
        gradient = jax.tree.map(lambda a, g: a + g.astype(a.dtype), gradient, micro_gradient)
        return gradient, total + micro_loss, jax.tree.map(jnp.maximum, stats, micro_stats)

    stats = {} if batch.sampled is None else {"logprob_gap": jnp.float32(0)}
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    carry = (zeros, jnp.float32(0), stats)
    start = jnp.sum(needed <= 0)
    for bucket in range(1, length_buckets + 1):
        length = -(-T * bucket // length_buckets)
        end = jnp.sum(needed <= length)
        carry = jax.lax.fori_loop(start, end, partial(accumulate, length=length), carry)
        start = end
    gradient, total, stats = carry
    computed = jnp.sum(needed > 0) * micro_prompts
    return gradient, {"loss": total, "prompts_computed": computed.astype(jnp.float32), **stats}


def _micro_loss(params, batch: WeightedResponses, *, config, temperature, importance_cap):
    hidden = model.forward(
        params, config, batch.prompts.tokens, batch.prompts.lengths, batch.tokens
    )
    logprobs = model.token_logprobs(params, config, hidden, batch.tokens, temperature)
    real = jnp.arange(batch.tokens.shape[-1]) < batch.lengths[..., None]
    stats, counted = {}, logprobs
    if importance_cap is not None:
        ratio = jnp.minimum(jnp.exp(logprobs - batch.sampled), importance_cap)
        counted = jax.lax.stop_gradient(ratio) * logprobs
    response_logprobs = jnp.where(real, counted, 0.0).sum(axis=-1)
    if batch.sampled is not None:
        gap = jnp.where(real, jnp.abs(logprobs - batch.sampled), 0.0)
        stats = {"logprob_gap": gap.max()}
    return -jnp.sum(batch.weights * response_logprobs), stats


def _in_micro_batches(batch: WeightedResponses, micro_prompts: int):
    """The batch as [M, micro_prompts, ...], and the response length each micro-batch needs."""
    learning = jnp.any(batch.weights != 0, axis=1)
    needed = jnp.where(learning, batch.lengths.max(axis=1), 0)
    order = jnp.argsort(needed)

    def split(x):
        x = x[order].reshape(-1, micro_prompts, *x.shape[1:])
        return constrain(x, None, "prompts")

    return jax.tree.map(split, batch), needed[order].reshape(-1, micro_prompts).max(axis=1)


def _cut(batch: WeightedResponses, T: int) -> WeightedResponses:
    sampled = None if batch.sampled is None else batch.sampled[..., :T]
    return batch.replace(tokens=batch.tokens[..., :T], sampled=sampled)
