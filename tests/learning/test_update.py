import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offload_jax.device import model
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import init_params, param_shardings
from offload_jax.judging import Judgement
from offload_jax.learning.gapg import group_advantages
from offload_jax.learning.grpo import clipped_surrogate
from offload_jax.learning.objective import ObjectiveConfig, learn
from offload_jax.learning.optimizer import OptimizerConfig, learning_rate, make_optimizer
from offload_jax.learning.prompt_filter import FilterConfig
from offload_jax.learning.reward import RewardConfig
from offload_jax.learning.update import WeightedResponses, gradient_of, init_state, update
from offload_jax.sampling.rollout import PromptBatch
from offload_jax.sharding import MeshConfig, make_mesh, place

DEVICE = DeviceConfig(
    vocabulary=12, width=16, layers=2, heads=4, kv_heads=2, head_size=6, mlp=20, rope_base=100.0
)
P, G, S, T = 8, 3, 5, 8
RNG = np.random.default_rng(0)
PROMPTS = PromptBatch(
    np.arange(P, dtype=np.int32),
    RNG.integers(0, 12, (P, S)).astype(np.int32),
    RNG.integers(1, S + 1, P).astype(np.int32),
)
RESPONSES = RNG.integers(0, 12, (P, G, T)).astype(np.int32)
LENGTHS = RNG.integers(1, T + 1, (P, G)).astype(np.int32)
WEIGHTS = RNG.normal(size=(P, G)).astype(np.float32)
WEIGHTS[[1, 4]] = 0
BATCH = WeightedResponses(PROMPTS, RESPONSES, LENGTHS, WEIGHTS)
# With a large epsilon Adam's step is smooth in the gradient, so that steps can be compared closely.
OPTIMIZER = make_optimizer(OptimizerConfig(rate=1.0, epsilon=1.0, clip=1e6), steps=10)
ALONE = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def params():
    return init_params(DEVICE, jax.random.key(0))


@partial(jax.jit, static_argnames=("micro_prompts", "length_buckets", "micro_group"))
def gradient(params, batch, micro_prompts=P, length_buckets=1, micro_group=None):
    return gradient_of(
        params,
        batch,
        config=DEVICE,
        micro_prompts=micro_prompts,
        micro_group=micro_group,
        length_buckets=length_buckets,
    )


def plain_loss(params, batch):
    """-sum(weights * log pi(response)), with every prompt repeated for each of its responses."""
    rows = jax.tree.map(lambda x: np.repeat(x, G, axis=0), batch.prompts)
    tokens = batch.tokens.reshape(P * G, 1, T)
    hidden = model.forward(params, DEVICE, rows.tokens, rows.lengths, tokens)
    logprobs = jax.nn.log_softmax(model.logits(params, DEVICE, hidden))
    logprobs = jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[:, 0, :, 0]
    real = np.arange(T) < batch.lengths.reshape(-1, 1)
    return -jnp.sum(batch.weights.reshape(-1) * jnp.where(real, logprobs, 0).sum(axis=1))


def assert_close(a, b, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.fixture(scope="module")
def plain(params):
    return jax.jit(jax.grad(plain_loss))(params, BATCH)


@pytest.mark.parametrize(
    ("micro_prompts", "length_buckets", "micro_group"),
    [(8, 1, None), (1, 1, None), (2, 4, None), (4, 3, None), (8, 4, None), (4, 3, 1)],
)
def test_sharing_prompts_micro_batches_and_buckets_do_not_change_the_gradient(
    params, plain, micro_prompts, length_buckets, micro_group
):
    ours, stats = gradient(params, BATCH, micro_prompts, length_buckets, micro_group)
    assert_close(ours, plain)
    np.testing.assert_allclose(stats["loss"], plain_loss(params, BATCH), rtol=1e-5)


def test_a_single_micro_batch_is_computed_at_one_of_its_lengths(params):
    text = gradient.lower(params, BATCH, P, 4).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert entry.count(" conditional(") == 4  # not loops, whose equal bodies are moved out of them
    assert " dot(" not in entry


def test_prompts_without_weight_are_not_computed(params):
    _, stats = gradient(params, BATCH, micro_prompts=1)
    assert stats["prompts_computed"] == P - 2
    garbage = BATCH.tokens.copy()
    garbage[[1, 4]] = 3
    assert_close(gradient(params, BATCH)[0], gradient(params, BATCH.replace(tokens=garbage))[0], 0)


def test_parts_of_groups_have_responses_alike_in_length_and_skip_those_without_weight(params):
    garbage, weights = BATCH.tokens.copy(), BATCH.weights.copy()
    lengths = np.tile(np.array([8, 3, 2], np.int32), (P, 1))
    lengths[0] = 2, 8, 3
    weights[:, 2], weights[0, 0] = 0, 0
    garbage[weights == 0] = 3
    garbage[np.arange(T) >= lengths[..., None]] = 3
    batch = BATCH.replace(weights=weights, lengths=lengths)
    ours, stats = gradient(params, batch, 1, 3, 1)
    other, _ = gradient(params, batch.replace(tokens=garbage), 1, 3, 1)
    assert_close(ours, other, 0)
    assert_close(ours, gradient(params, batch)[0])
    np.testing.assert_allclose(stats["prompts_computed"], (weights != 0).sum() / G, rtol=1e-6)


def test_tokens_after_the_end_of_a_response_have_no_gradient(params, plain):
    after = np.arange(T) >= LENGTHS[..., None]
    other = BATCH.replace(tokens=np.where(after, 7, RESPONSES))
    assert_close(gradient(params, other)[0], plain)


def test_gapgs_loss_gradient_is_the_estimator(params):
    device_correct, called = RNG.random((2, P, G)) < 0.4
    called &= ~device_correct
    judged = Judgement(device_correct, called, device_correct, called.any(axis=1))
    learnt = learn(
        judged,
        jnp.asarray(LENGTHS),
        PROMPTS.ids,
        jax.random.key(0),
        objective=ObjectiveConfig("gapg"),
        reward=RewardConfig(),
        filter=FilterConfig(),
        T=T,
    )
    kept = np.array(learnt.kept.prompts)
    assert 0 < kept.sum() < P

    @jax.jit
    def response_gradient(params, p, g):
        pick = jnp.zeros((P, G)).at[p, g].set(-1.0)
        return jax.grad(plain_loss)(params, BATCH.replace(weights=pick))

    rewards = np.array(learnt.rewards, np.float64)
    estimate = jax.tree.map(lambda x: np.zeros(x.shape), params)
    for p in np.flatnonzero(kept):
        for g in range(G):
            factor = (rewards[p, g] - rewards[p].mean()) / (G - 1) / kept.sum()
            score = response_gradient(params, p, g)
            estimate = jax.tree.map(lambda e, s, f=factor: e + f * np.array(s), estimate, score)
    ascent = gradient(params, BATCH.replace(weights=np.array(learnt.weights)))[0]
    assert_close(ascent, jax.tree.map(lambda e: -e, estimate))


def test_the_estimator_is_unbiased_through_the_update_for_a_whole_language_model():
    """Every group of 2 responses of 2 tokens from 3: the mean gradient is that of E[r]."""
    device = DeviceConfig(3, 8, 1, 2, 1, 4, 8)
    small = init_params(device, jax.random.key(1))
    one = PromptBatch(np.array([0]), np.array([[1, 2]], np.int32), np.array([2], np.int32))
    responses = np.array(list(itertools.product(range(3), repeat=2)), np.int32)
    rewards = np.random.default_rng(2).random(9).astype(np.float32)
    hidden_of = partial(
        model.forward, config=device, prompts=one.tokens, prompt_lengths=one.lengths
    )

    @jax.jit
    def probabilities(small):
        hidden = hidden_of(small, responses=responses[None])
        logprobs = model.token_logprobs(small, device, hidden, responses[None])
        return jnp.exp(logprobs.sum(axis=-1)[0])

    p = probabilities(small)
    np.testing.assert_allclose(p.sum(), 1.0, atol=1e-5)
    exact = jax.grad(lambda small: probabilities(small) @ rewards)(small)

    # All 81 groups at once, each as a prompt whose weights also carry the group's probability.
    groups = np.array(list(itertools.product(range(9), repeat=2)))
    weights = group_advantages(rewards[groups]) * p[groups].prod(axis=1, keepdims=True)
    repeated = jax.tree.map(lambda x: np.repeat(x, 81, axis=0), one)
    batch = WeightedResponses(repeated, responses[groups], np.full((81, 2), 2), weights)
    mean, _ = jax.jit(partial(gradient_of, config=device, micro_prompts=81))(small, batch)
    assert_close(jax.tree.map(jnp.negative, mean), exact, atol=1e-6)


def test_nothing_to_learn_from_leaves_weights_and_optimiser_as_they_are(params):
    with jax.set_mesh(ALONE):
        state = start(params, ALONE)
        before = jax.device_get((state.params, state.optimizer))
        empty = BATCH.replace(weights=np.zeros((P, G), np.float32))
        after, _ = update(state, empty, config=DEVICE, optimizer=OPTIMIZER, micro_prompts=4)
    assert_close(before, jax.device_get((after.params, after.optimizer)), 0)
    assert int(after.step) == 1


def start(params, mesh):
    # A copy: the update donates its state.
    copied = jax.tree.map(lambda x: jnp.array(np.array(x)), params)
    placed = jax.device_put(copied, param_shardings(DEVICE, mesh))
    return init_state(placed, OPTIMIZER, DEVICE, mesh)


def updated(params, mesh):
    with jax.set_mesh(mesh):
        state, batch = start(params, mesh), place(mesh, BATCH, "prompts")
        new, stats = update(state, batch, config=DEVICE, optimizer=OPTIMIZER, micro_prompts=P)
        assert state.params["embedding"].is_deleted()  # donated
        return jax.device_get(new.params), float(stats["gradient_norm"])


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 2)])
def test_devices_and_mesh_do_not_change_the_update(params, shape):
    alone, norm = updated(params, ALONE)
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    spread, other_norm = updated(params, mesh)
    np.testing.assert_allclose(norm, other_norm, rtol=1e-5)
    assert_close(alone, spread)
    moved = np.abs(alone["embedding"] - np.array(params["embedding"])).max()
    assert moved > 0.01  # far above the tolerance


def test_the_samplers_logprobs_are_compared_with_the_trainers(params):
    hidden = model.forward(params, DEVICE, PROMPTS.tokens, PROMPTS.lengths, RESPONSES)
    exact = np.array(model.token_logprobs(params, DEVICE, hidden, RESPONSES))
    _, stats = gradient(params, BATCH.replace(sampled=exact))
    assert stats["logprob_gap"] < 1e-5
    exact[0, 0, 0] += 0.5
    _, stats = gradient(params, BATCH.replace(sampled=exact))
    np.testing.assert_allclose(stats["logprob_gap"], 0.5, atol=1e-5)


@pytest.mark.parametrize("cap", [1e9, 1.2])
def test_truncated_importance_weights_count_each_token_by_its_ratio(params, cap):
    exact = trainer_logprobs(params)
    sampled = exact + RNG.normal(scale=0.5, size=exact.shape).astype(np.float32)
    batch = jax.tree.map(jnp.asarray, BATCH.replace(sampled=sampled))
    ratio = np.minimum(np.exp(exact - sampled), cap)
    assert (ratio == cap).any() == (cap < 2)

    def expected(params):
        hidden = model.forward(params, DEVICE, PROMPTS.tokens, PROMPTS.lengths, RESPONSES)
        logprobs = model.token_logprobs(params, DEVICE, hidden, RESPONSES)
        real = np.arange(T) < LENGTHS[..., None]
        return -(WEIGHTS[..., None] * jnp.where(real, ratio * logprobs, 0)).sum()

    ours, _ = gradient_of(params, batch, config=DEVICE, micro_prompts=P, importance_cap=cap)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), ours, jax.grad(expected)(params))


@pytest.mark.parametrize("micro_prompts", [2, 8])
def test_the_clipped_surrogate_is_ascended_token_by_token(params, micro_prompts):
    exact = trainer_logprobs(params)
    old = exact + RNG.normal(scale=0.4, size=exact.shape).astype(np.float32)
    batch = jax.tree.map(jnp.asarray, BATCH.replace(sampled=old))
    real = np.arange(T) < LENGTHS[..., None]

    def expected(params):
        hidden = model.forward(params, DEVICE, PROMPTS.tokens, PROMPTS.lengths, RESPONSES)
        logprobs = model.token_logprobs(params, DEVICE, hidden, RESPONSES)
        return -jnp.where(real, clipped_surrogate(logprobs, old, WEIGHTS, 0.2)[0], 0).sum()

    ours, stats = gradient_of(params, batch, config=DEVICE, micro_prompts=micro_prompts, clip=0.2)
    assert_close(ours, jax.grad(expected)(params), atol=1e-5)
    clipped = np.array(clipped_surrogate(exact, old, WEIGHTS, 0.2)[1])
    share = clipped[real & (WEIGHTS != 0)[..., None]].mean()
    assert 0.05 < share < 0.9
    np.testing.assert_allclose(stats["clipped"], share, atol=1e-6)


def test_on_policy_the_clipped_surrogate_has_the_plain_gradient(params):
    batch = jax.tree.map(jnp.asarray, BATCH.replace(sampled=trainer_logprobs(params)))
    clipped, stats = gradient_of(params, batch, config=DEVICE, micro_prompts=P, clip=0.2)
    assert_close(clipped, gradient(params, batch)[0], atol=1e-5)
    assert stats["clipped"] == 0


def test_repeated_updates_keep_the_old_logprobs_and_count_as_one_step(params):
    batch = BATCH.replace(sampled=trainer_logprobs(params))
    # Steps so small that rounding does not decide which tokens are clipped.
    gentle = make_optimizer(OptimizerConfig(rate=0.1, epsilon=1.0, clip=1e6), steps=10)
    options = {"config": DEVICE, "optimizer": gentle, "micro_prompts": P, "clip": 0.2}
    with jax.set_mesh(ALONE):
        at_once, stats = update(start(params, ALONE), batch, repeats=3, **options)
        state = start(params, ALONE)
        for _ in range(3):
            state, last = update(state, batch, **options)
    assert_close(at_once.params, state.params)
    assert (int(at_once.step), int(state.step)) == (1, 3)
    # Of the first: the sampler's mismatch, not the policy's move.
    assert stats["logprob_gap"] < 1e-5
    np.testing.assert_allclose(stats["clipped"], last["clipped"], atol=1e-6)
    assert last["clipped"] > 0


def trainer_logprobs(params):
    hidden = model.forward(params, DEVICE, PROMPTS.tokens, PROMPTS.lengths, RESPONSES)
    return np.asarray(model.token_logprobs(params, DEVICE, hidden, RESPONSES))


def test_the_learning_rate_warms_up_and_decays():
    cosine = learning_rate(OptimizerConfig(rate=2.0, schedule="cosine", warmup_steps=4), 20)
    assert [float(cosine(s)) for s in (0, 2, 4, 12, 20)] == pytest.approx([0, 1, 2, 1, 0], abs=1e-6)
    constant = learning_rate(OptimizerConfig(rate=2.0), 20)
    assert [float(constant(s)) for s in (0, 19)] == [2, 2]


def test_gradients_are_clipped_and_weights_decay():
    clipped = make_optimizer(OptimizerConfig(rate=1.0, clip=1e-12, epsilon=1.0), 5)
    state = clipped.init({"w": jnp.ones(3)})
    step, _ = clipped.update({"w": jnp.full(3, 1e6)}, state, {"w": jnp.ones(3)})
    assert float(optax.tree.norm(step)) < 1e-9
    decayed = make_optimizer(OptimizerConfig(rate=0.1, weight_decay=0.5), 5)
    step, _ = decayed.update(
        {"w": jnp.zeros(3)}, decayed.init({"w": jnp.ones(3)}), {"w": jnp.ones(3)}
    )
    np.testing.assert_allclose(step["w"], -0.05, rtol=1e-6)


@pytest.mark.parametrize("change", [{"rate": 0.0}, {"clip": 0.0}, {"warmup_steps": -1}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        OptimizerConfig(**{"rate": 1.0} | change)
