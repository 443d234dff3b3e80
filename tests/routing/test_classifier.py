import dataclasses

import jax
import numpy as np

from offload_jax.device.config import DeviceConfig
from offload_jax.device.model import prefill
from offload_jax.device.params import init_params
from offload_jax.routing import classifier
from offload_jax.routing.classifier import on_device

classify = jax.jit(classifier.classify, static_argnames="body")

DEVICE = DeviceConfig(
    vocabulary=20, width=16, layers=1, heads=4, kv_heads=2, head_size=6, mlp=20, remat="full"
)
TOKENS = np.random.default_rng(0).integers(0, 20, (3, 7)).astype(np.int32)
LENGTHS = np.array([7, 1, 4], np.int32)


def lively():
    params = on_device(init_params(DEVICE, jax.random.key(0)), DEVICE)
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (16,))
    return params


def test_the_device_body_reads_the_state_of_the_last_real_token():
    params = lively()
    last, _ = jax.jit(prefill, static_argnames="config")(params["device"], DEVICE, TOKENS, LENGTHS)
    by_hand = last @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(classify(params, DEVICE, TOKENS, LENGTHS), by_hand, atol=1e-5)
    real = np.arange(7) < LENGTHS[:, None]
    padded = np.pad(np.where(real, TOKENS, 3), ((0, 0), (0, 5)))
    np.testing.assert_allclose(classify(params, DEVICE, padded, LENGTHS), by_hand, atol=1e-5)


def test_the_device_body_starts_undecided_and_every_weight_of_the_device_learns():
    start = on_device(init_params(DEVICE, jax.random.key(0)), DEVICE)
    np.testing.assert_array_equal(classify(start, DEVICE, TOKENS, LENGTHS), np.zeros(3))
    gradient = jax.jit(jax.grad(lambda p: classify(p, DEVICE, TOKENS, LENGTHS).sum()))(lively())
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient))


def test_logits_are_float32_whatever_the_device_computes_in():
    config = dataclasses.replace(DEVICE, compute_dtype="bfloat16")
    logits = classify(lively(), config, TOKENS, LENGTHS)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, classify(lively(), DEVICE, TOKENS, LENGTHS), atol=0.3)
