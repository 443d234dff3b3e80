"""Training a router to tell whether the device's answer is wrong.

Binary cross-entropy with the label "the device is wrong" (the complement of the paper's "the device
suffices"), stopped early on validation prompts. A score is a probability; high ones are offloaded.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params
from offload_jax.learning.optimizer import OptimizerConfig, make_optimizer
from offload_jax.routing.classifier import Body, classify
from offload_jax.routing.deberta import DebertaConfig
from offload_jax.settings import require
from offload_jax.sharding import constrain


@dataclasses.dataclass(frozen=True)
class RouterConfig:
    """A router's body, one of the two, and how it is trained."""

    optimizer: OptimizerConfig
    deberta: DebertaConfig | None = None
    device: DeviceConfig | None = None
    batch: int = 64  # rows of an optimiser step, and of a program that scores
    epochs: int = 20  # at most
    patience: int = 3  # epochs without a better validation loss after which training stops

    def __post_init__(self):
        bodies = (self.deberta, self.device)
        require(bodies.count(None) == 1, "give either deberta or device, as a router's body.")
        for name in ("batch", "epochs", "patience"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1.")

    @property
    def body(self) -> Body:
        """Whichever is given."""
        return self.deberta or self.device


@struct.dataclass
class Examples:
    """What a router learns from, host arrays."""

    tokens: Int[Array, "n S"]  # right-padded
    lengths: Int[Array, " n"]
    labels: Bool[Array, " n"]  # the device's answer is wrong


@dataclasses.dataclass(frozen=True)
class Epoch:
    """Mean cross-entropy in nats, of the training batches (with dropout) and of validation."""

    train_loss: float
    validation_loss: float


@dataclasses.dataclass(frozen=True)
class Trained:
    """The weights of the epoch with the lowest validation loss, and the losses of all epochs."""

    params: Params
    history: list[Epoch]

    @property
    def best(self) -> int:
        """Which epoch, from 0, the weights are of."""
        return _best(self.history)


def train_router(
    start: Params, train: Examples, validation: Examples, config: RouterConfig, seed: int
) -> Trained:
    """Trains a router; one program for all epochs and seeds.

    An epoch is shuffled by (seed, epoch) and takes whole batches: the fewer than a batch that are
    left over are others in every epoch.

    Args:
        start: weights from `deberta.init_params`, `load_huggingface` or `on_device`; not changed.
        train: at least one batch of examples.
        validation: at least one example; decides when to stop and which weights are kept.
        config: the settings.
        seed: of shuffling and dropout.

    Raises:
        ValueError: examples that do not fit the settings; a loss that is not finite.
    """
    for name, examples in (("training", train), ("validation", validation)):
        _check(name, examples, config.body)
    n = len(train.lengths)
    require(n >= config.batch, f"batch is {config.batch}, but there are {n} training examples.")
    steps = config.epochs * (n // config.batch)
    params = jax.tree.map(jnp.copy, start)  # an epoch takes its inputs' memory
    state = make_optimizer(config.optimizer, steps).init(params)
    train = jax.tree.map(jnp.asarray, train)
    history, best = [], params
    for epoch in range(config.epochs):
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        params, state, loss = _epoch(
            params,
            state,
            train,
            key,
            body=config.body,
            batch=config.batch,
            optimizer=config.optimizer,
            steps=steps,
        )
        history.append(Epoch(float(loss), _loss(params, validation, config)))
        finite = math.isfinite(history[-1].train_loss + history[-1].validation_loss)
        require(
            finite,
            f"optimizer.rate is {config.optimizer.rate}: the router's loss is not finite in epoch"
            f" {epoch + 1}.",
        )
        if _best(history) == epoch:
            best = jax.tree.map(jnp.copy, params)
        elif epoch - _best(history) >= config.patience:
            break
    return Trained(best, history)


def router_scores(
    params: Params,
    config: RouterConfig,
    tokens: Int[np.ndarray, "n S"],
    lengths: Int[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Probabilities that the device is wrong; one program for all batches."""
    return np.exp(-np.logaddexp(0, -_logits(params, config, tokens, lengths)))


def prompts_with_responses(
    prompts: Int[np.ndarray, "n S"],
    prompt_lengths: Int[np.ndarray, " n"],
    responses: Int[np.ndarray, "n T"],
    response_lengths: Int[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, "n S+T"], Int[np.ndarray, " n"]]:
    """Tokens of each prompt and, right behind it, its response; and their lengths."""
    S, T = prompts.shape[1], responses.shape[1]
    positions = np.arange(S + T)
    own = positions < prompt_lengths[:, None]
    in_response = np.clip(positions - prompt_lengths[:, None], 0, T - 1)
    tokens = np.where(
        own,
        np.pad(prompts, ((0, 0), (0, T))),
        np.take_along_axis(responses, in_response, axis=1),
    )
    return tokens, prompt_lengths + response_lengths


@partial(
    jax.jit,
    static_argnames=("body", "batch", "optimizer", "steps"),
    donate_argnames=("params", "state"),
)
def _epoch(
    params: Params,
    state: optax.OptState,
    train: Examples,
    key: jax.Array,
    *,
    body: Body,
    batch: int,
    optimizer: OptimizerConfig,
    steps: int,
):
    """One pass over the examples, of a run of `steps` updates; the mean loss of its batches."""
    # Made here from the settings, so that another seed is the same program.
    transform = make_optimizer(optimizer, steps)
    batches = len(train.lengths) // batch
    shuffling, dropping = jax.random.split(key)
    order = jax.random.permutation(shuffling, len(train.lengths))
    order = order[: batches * batch].reshape(batches, batch)

    def step(carry, inputs):
        params, state = carry
        rows, key = inputs
        some = jax.tree.map(lambda x: constrain(x[rows], "prompts"), train)

        def mean_loss(params):
            logits = classify(params, body, some.tokens, some.lengths, key)
            return optax.sigmoid_binary_cross_entropy(logits, some.labels).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(params)
        change, state = transform.update(gradient, state, params)
        return (optax.apply_updates(params, change), state), loss

    keys = jax.random.split(dropping, batches)
    (params, state), losses = jax.lax.scan(step, (params, state), (order, keys))
    return params, state, losses.mean()


def _best(history):
    return int(np.argmin([epoch.validation_loss for epoch in history]))


def _loss(params, examples: Examples, config):
    logits = _logits(params, config, examples.tokens, examples.lengths)
    with np.errstate(invalid="ignore"):  # of weights that have diverged
        return float(np.logaddexp(0, np.where(examples.labels, -logits, logits)).mean())


def _logits(params, config, tokens, lengths):
    """Logits in float64 [n], batch by batch; the last batch is filled up with its last row."""
    found = [np.zeros(0)]
    for first in range(0, len(lengths), config.batch):
        rows = np.minimum(np.arange(first, first + config.batch), len(lengths) - 1)
        found.append(_batch_logits(params, tokens[rows], lengths[rows], body=config.body))
    return np.concatenate(found)[: len(lengths)].astype(np.float64)


@partial(jax.jit, static_argnames="body")
def _batch_logits(params, tokens, lengths, *, body):
    tokens, lengths = constrain(tokens, "prompts"), constrain(lengths, "prompts")
    return classify(params, body, tokens, lengths)


def _check(name, examples, body):
    n, S = np.shape(examples.tokens)
    require(n >= 1, f"There are no {name} examples for the router.")
    for part in ("lengths", "labels"):
        found = np.shape(getattr(examples, part))
        require(found == (n,), f"The {name} {part} of the router are {found}, not {(n,)}.")
    require(
        np.min(examples.lengths) >= 1 and np.max(examples.lengths) <= S,
        f"The {name} lengths of the router must be 1 to {S}.",
    )
    require(
        np.min(examples.tokens) >= 0 and np.max(examples.tokens) < body.vocabulary,
        f"The {name} tokens of the router must be below vocabulary ({body.vocabulary}).",
    )
