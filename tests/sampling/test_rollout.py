import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.device import model
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import init_params
from offload_jax.sampling.rollout import PromptBatch, SamplingConfig, rollout, step_key
from offload_jax.sharding import MeshConfig, make_mesh, place

DEVICE = DeviceConfig(
    vocabulary=12, width=16, layers=2, heads=4, kv_heads=2, head_size=6, mlp=20, rope_base=100.0
)
P, G, S, T, STOP, PAD = 4, 3, 5, 10, 1, 0
LENGTHS = np.array([2, 5, 1, 4], np.int32)
TOKENS = np.random.default_rng(0).integers(2, 12, (P, S)).astype(np.int32)
PROMPTS = PromptBatch(np.array([7, 3, 100, 41], np.int32), TOKENS, LENGTHS)
SAMPLING = SamplingConfig(group=G, prompt_tokens=S, response_tokens=T, cache_tokens=4)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2.0 * x, init_params(DEVICE, jax.random.key(0)))


def sample(params, prompts=PROMPTS, step=0, seed=0, stop=STOP, **changes):
    sampling = dataclasses.replace(SAMPLING, **changes)
    key = step_key(seed, step)
    return jax.device_get(
        rollout(params, prompts, key, config=DEVICE, sampling=sampling, stops=(stop,), pad=PAD)
    )


@partial(jax.jit, static_argnames="temperature")
def trainer_logprobs(params, responses, temperature):
    hidden = model.forward(params, DEVICE, TOKENS, LENGTHS, responses)
    return model.token_logprobs(params, DEVICE, hidden, responses, temperature)


def real(rolled):
    return np.arange(rolled.tokens.shape[2]) < rolled.lengths[..., None]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_sampled_logprobs_equal_the_trainers(params, temperature):
    rolled = sample(params, temperature=temperature)
    expected = trainer_logprobs(params, rolled.tokens, temperature)
    np.testing.assert_allclose(rolled.logprobs, np.where(real(rolled), expected, 0), atol=1e-4)


def test_a_response_ends_with_its_stop_token_and_padding_follows(params):
    rolled = sample(params)
    mask = real(rolled)
    assert (rolled.tokens[~mask] == PAD).all() and (rolled.logprobs[~mask] == 0).all()
    last = np.take_along_axis(rolled.tokens, rolled.lengths[..., None] - 1, axis=2)[..., 0]
    assert ((last == STOP) == rolled.stopped).all()
    assert (rolled.lengths[~rolled.stopped] == T).all()
    inner = np.arange(T) < rolled.lengths[..., None] - 1
    assert (rolled.tokens[inner] != STOP).all()
    assert rolled.stopped.any() and not rolled.stopped.all()  # both finish reasons were seen


def test_a_stop_token_at_position_zero_is_a_response_of_one_token(params):
    first = sample(params).tokens[0, 0, 0]
    rolled = sample(params, stop=int(first))
    assert rolled.lengths[0, 0] == 1 and rolled.stopped[0, 0]


def test_steps_seeds_prompts_and_samples_have_streams_of_their_own(params):
    rolled = sample(params)
    again = sample(params)
    assert (again.tokens == rolled.tokens).all()
    assert (sample(params, step=1).tokens != rolled.tokens).any()
    assert (sample(params, seed=1).tokens != rolled.tokens).any()
    assert (rolled.tokens[:, 0] != rolled.tokens[:, 1]).any()
    twins = PromptBatch(PROMPTS.ids, TOKENS[[1] * P], LENGTHS[[1] * P])
    of_twins = sample(params, twins, stop=99).tokens
    assert (of_twins[0] != of_twins[1]).any()


def test_a_response_depends_on_neither_place_nor_company_of_its_prompt(params):
    rolled = sample(params)
    order = np.array([2, 0, 3, 1])
    moved = sample(params, jax.tree.map(lambda x: x[order], PROMPTS))
    np.testing.assert_array_equal(moved.tokens, rolled.tokens[order])
    fewer = sample(params, jax.tree.map(lambda x: x[1:3], PROMPTS))
    np.testing.assert_array_equal(fewer.tokens, rolled.tokens[1:3])
    bigger_group = sample(params, group=G + 2)
    np.testing.assert_array_equal(bigger_group.tokens[:, :G], rolled.tokens)


def test_padding_and_the_caches_first_stretch_change_nothing(params):
    rolled = sample(params)
    wide = np.concatenate([TOKENS, np.full((P, 3), 9, np.int32)], axis=1)
    wide[0, 2:] = 5
    padded = sample(params, PromptBatch(PROMPTS.ids, wide, LENGTHS))
    np.testing.assert_array_equal(padded.tokens, rolled.tokens)
    np.testing.assert_array_equal(sample(params, cache_tokens=T).tokens, rolled.tokens)


def test_greedy_takes_the_likeliest_token_of_the_full_forward(params):
    rolled = sample(params, temperature=0.0)
    hidden = jax.jit(model.forward, static_argnums=1)(
        params, DEVICE, TOKENS, LENGTHS, rolled.tokens
    )
    best = np.array(model.logits(params, DEVICE, hidden)).argmax(-1)
    assert (best == rolled.tokens)[real(rolled)].all()
    assert (rolled.tokens[:, 0] == rolled.tokens[:, 1]).all()


def test_first_tokens_come_as_often_as_the_softmax_says(params):
    N = 3000
    rolled = sample(
        params, jax.tree.map(lambda x: x[:1], PROMPTS), group=N, response_tokens=1, shrink=1.0
    )
    hidden, _ = model.prefill(params, DEVICE, TOKENS, LENGTHS)
    p = np.array(jax.nn.softmax(model.logits(params, DEVICE, hidden)[0]))
    seen = np.bincount(rolled.tokens.ravel(), minlength=12) / N
    assert (np.abs(seen - p) < 5 * np.sqrt(p * (1 - p) / N) + 1e-3).all()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_pairs_of_tokens_come_as_often_as_the_model_says(params, temperature):
    """Fails where two positions share their randomness."""
    N = 6000
    one = jax.tree.map(lambda x: x[:1], PROMPTS)
    rolled = sample(
        params, one, stop=99, group=N, response_tokens=2, temperature=temperature, shrink=1.0
    )
    pairs = np.stack(np.divmod(np.arange(144), 12), axis=1).astype(np.int32)[None]
    hidden = model.forward(params, DEVICE, TOKENS[:1], LENGTHS[:1], pairs)
    logprobs = model.token_logprobs(params, DEVICE, hidden, pairs, temperature)
    p = np.exp(np.array(logprobs, np.float64).sum(axis=-1)[0])
    assert abs(p.sum() - 1) < 1e-4
    seen = np.bincount(rolled.tokens[0] @ [12, 1], minlength=144) / N
    assert (np.abs(seen - p) < 5 * np.sqrt(p * (1 - p) / N) + 1e-3).all()


def test_stopping_early_changes_nothing_that_came_before(params):
    stopped, endless = sample(params), sample(params, stop=99)
    mask = real(stopped)
    np.testing.assert_array_equal(stopped.tokens[mask], endless.tokens[mask])
    np.testing.assert_allclose(stopped.logprobs[mask], endless.logprobs[mask], atol=1e-6)


def test_a_bfloat16_sampler_stays_near_the_trainer_and_reports_its_own_logprobs(params):
    rolled = sample(params, compute_dtype="bfloat16")
    expected = trainer_logprobs(params, rolled.tokens, 1.0)
    gap = np.abs(rolled.logprobs - np.where(real(rolled), expected, 0))
    assert 1e-4 < gap.max() < 0.5


@pytest.mark.parametrize("shape", [(4, 1, 2), (2, 2, 2)])
def test_every_mesh_gives_the_same_tokens(params, shape):
    mesh = make_mesh(MeshConfig(*shape))
    with jax.set_mesh(mesh):
        spread = sample(init_on(mesh, params), place(mesh, PROMPTS, "prompts"))
    np.testing.assert_array_equal(spread.tokens, sample(params).tokens)


def init_on(mesh, params):
    from offload_jax.device.params import param_shardings

    return jax.device_put(params, param_shardings(DEVICE, mesh))


@pytest.mark.parametrize(
    ("change", "setting"),
    [({"group": 0}, "group"), ({"temperature": -1.0}, "temperature")],
)
def test_impossible_settings_are_refused_by_name(change, setting):
    with pytest.raises(ValueError, match=rf"config\.sampling\.{setting}"):
        dataclasses.replace(SAMPLING, **change)


def test_logits_that_differ_by_much_are_sampled_without_overflow(params):
    sharp = jax.tree.map(lambda x: 30.0 * x, params)
    assert np.isfinite(sample(sharp).logprobs).all()
    assert jnp.isfinite(trainer_logprobs(sharp, sample(sharp).tokens, 1.0)).all()
