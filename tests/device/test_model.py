import dataclasses
import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.device import model
from offload_jax.device.attention import KeyValues, attend, attend_causally
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import init_params

_SPEC = importlib.util.spec_from_file_location("reference", Path(__file__).parent / "reference.py")
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

BASE = DeviceConfig(
    vocabulary=23, width=16, layers=2, heads=4, kv_heads=2, head_size=6, mlp=20, rope_base=100.0
)
P, G, S, T = 3, 2, 7, 9
LENGTHS = np.array([3, 7, 1], np.int32)
RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(0, 23, (P, S)).astype(np.int32)
RESPONSES = RNG.integers(0, 23, (P, G, T)).astype(np.int32)


def weights(config):
    """Random weights; norms away from one, so that leaving one out shows."""
    params = init_params(config, jax.random.key(1))
    noise = lambda x, i: x + 0.3 * jax.random.normal(jax.random.key(i), x.shape, x.dtype)  # noqa: E731
    layers = dict(params["layers"])
    layers["attention_norm"] = noise(layers["attention_norm"], 2)
    layers["mlp_norm"] = noise(layers["mlp_norm"], 3)
    return {**params, "layers": layers, "final_norm": noise(params["final_norm"], 4)}


def predictions(params, config, responses=RESPONSES, prompts=PROMPTS):
    """Logits that predict each response token, [P, G, T, V]."""
    return np.array(_logits(params, config, prompts, responses))


@partial(jax.jit, static_argnames="config")
def _logits(params, config, prompts, responses):
    hidden = model.forward(params, config, prompts, LENGTHS, responses)
    return model.logits(params, config, hidden)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_forward_equals_a_plain_decoder_over_prompt_and_response_end_to_end(kv_heads, tied):
    config = dataclasses.replace(BASE, kv_heads=kv_heads, tied_embeddings=tied)
    params = weights(config)
    ours = predictions(params, config)
    for p in range(P):
        for g in range(G):
            row = [*PROMPTS[p, : LENGTHS[p]], *RESPONSES[p, g]]
            theirs = reference.reference_logits(params, config, row)
            np.testing.assert_allclose(ours[p, g], theirs[LENGTHS[p] - 1 : -1], atol=2e-5)


def test_prefill_and_decode_equal_the_full_forward_at_every_position():
    params = weights(BASE)
    expected = predictions(params, BASE)
    hidden, prompt_caches = jax.jit(model.prefill, static_argnums=1)(params, BASE, PROMPTS, LENGTHS)
    logits = np.array(model.logits(params, BASE, hidden))[:, None]
    np.testing.assert_allclose(
        np.broadcast_to(logits, expected[:, :, 0].shape), expected[:, :, 0], atol=1e-5
    )
    ready = model.decode_weights(params, BASE, S + T)
    caches = model.empty_caches(BASE, P, G, T, first=4)
    decode = jax.jit(model.decode, static_argnums=1)
    for t in range(T - 1):
        hidden, caches = decode(
            ready, BASE, RESPONSES[:, :, t], jnp.int32(t), LENGTHS, prompt_caches, caches
        )
        logits = model.logits_first(ready, hidden).transpose(1, 2, 0)
        np.testing.assert_allclose(logits, expected[:, :, t + 1], atol=1e-5)


def test_a_response_of_one_token_is_predicted_by_the_prompt_alone():
    params = weights(BASE)
    alone = predictions(params, BASE, RESPONSES[:, :, :1])
    np.testing.assert_allclose(alone, predictions(params, BASE)[:, :, :1], atol=1e-5)


def test_padding_of_a_prompt_never_leaks():
    params = weights(BASE)
    other = PROMPTS.copy()
    other[0, 3:], other[2, 1:] = 5, 9
    wider = np.concatenate([PROMPTS, np.full((P, 4), 11, np.int32)], axis=1)
    np.testing.assert_array_equal(
        predictions(params, BASE), predictions(params, BASE, prompts=other)
    )
    np.testing.assert_allclose(
        predictions(params, BASE), predictions(params, BASE, prompts=wider), atol=1e-5
    )


def test_a_later_token_changes_no_earlier_state_and_no_other_row():
    params = weights(BASE)
    changed = RESPONSES.copy()
    changed[1, 0, 5] = (changed[1, 0, 5] + 1) % 23
    before, after = predictions(params, BASE), predictions(params, BASE, changed)
    same = np.ones((P, G, T), bool)
    same[1, 0, 6:] = False
    np.testing.assert_array_equal(before[same], after[same])
    assert not np.allclose(before[1, 0, 6], after[1, 0, 6])


def test_logprobs_are_normalised_at_any_temperature_and_chunks_do_not_matter():
    params = weights(BASE)
    hidden = jax.jit(model.forward, static_argnums=1)(params, BASE, PROMPTS, LENGTHS, RESPONSES)

    def total(params, chunk):
        logprobs = model.token_logprobs(params, BASE, hidden, RESPONSES, 0.7, chunk)
        return logprobs.sum(), logprobs

    gradient = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)
    (_, whole), whole_gradient = gradient(params, 128)
    (_, pieces), pieces_gradient = gradient(params, 4)
    expected = jax.nn.log_softmax(model.logits(params, BASE, hidden) / 0.7)
    expected = np.take_along_axis(np.array(expected), RESPONSES[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    np.testing.assert_allclose(pieces, whole, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), whole_gradient, pieces_gradient
    )


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_the_backward_pass_recomputes_does_not_change_the_gradient(remat):
    def loss(params, config):
        hidden = model.forward(params, config, PROMPTS, LENGTHS, RESPONSES)
        return model.token_logprobs(params, config, hidden, RESPONSES).sum()

    params = weights(BASE)
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, other = (
        gradient(params, dataclasses.replace(BASE, remat=name)) for name in ("none", remat)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, other)


def test_bfloat16_is_near_float32_and_keeps_float32_logits():
    params = weights(BASE)
    half = dataclasses.replace(BASE, compute_dtype="bfloat16", param_dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    logits = _logits(rounded, half, PROMPTS, RESPONSES)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, predictions(params, BASE), atol=0.15)


@pytest.mark.parametrize("blocks", [1, 2, 5, 50])
def test_attention_in_blocks_equals_the_full_square(blocks):
    keys = jax.random.split(jax.random.key(0), 5)
    queries = jax.random.normal(keys[0], (P, G, T, 4, 6))
    own = KeyValues(*(jax.random.normal(key, (P, G, 2, T, 6)) for key in keys[1:3]))
    prompt = KeyValues(*(jax.random.normal(key, (P, 2, S, 6)) for key in keys[3:]))
    mask = np.arange(S) < LENGTHS[:, None]
    square = attend(queries, own, np.tril(np.ones((T, T), bool)), prompt, mask)
    ours = jax.jit(attend_causally, static_argnums=4)(queries, own, prompt, mask, blocks)
    np.testing.assert_allclose(ours, square, atol=1e-5)
