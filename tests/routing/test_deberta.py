import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.routing import deberta
from offload_jax.routing.deberta import DebertaConfig, _by_distance, bucketed, init_params

encode = jax.jit(deberta.encode, static_argnames="config")
classify = jax.jit(deberta.classify, static_argnames="config")

CONFIG = DebertaConfig(
    vocabulary=30, width=12, layers=3, heads=3, mlp=20, buckets=8, max_distance=20, dropout=0.5
)
TOKENS = np.random.default_rng(0).integers(0, 30, (4, 11)).astype(np.int32)
LENGTHS = np.array([11, 1, 5, 10], np.int32)


def lively_params(config=CONFIG, scale=10.0):
    """Weights large enough that every part of the attention shows in the output."""
    return jax.tree.map(lambda x: scale * x, init_params(config, jax.random.key(0)))


def test_padding_is_not_seen_whatever_stands_in_it_and_however_long_it_is():
    params = lively_params()
    states = encode(params, CONFIG, TOKENS, LENGTHS)
    real = np.arange(11) < LENGTHS[:, None]
    other = np.where(real, TOKENS, 7)
    np.testing.assert_array_equal(states[real], encode(params, CONFIG, other, LENGTHS)[real])
    logits = classify(params, CONFIG, TOKENS, LENGTHS)
    shorter = classify(params, CONFIG, TOKENS[:, :5], LENGTHS)
    np.testing.assert_allclose(logits[1:3], shorter[1:3], atol=1e-5)


def test_the_order_of_tokens_matters_and_both_position_terms_use_the_shared_projections():
    params = lively_params()
    turned = classify(params, CONFIG, TOKENS[:1, ::-1], LENGTHS[:1])
    forward = classify(params, CONFIG, TOKENS[:1], LENGTHS[:1])
    assert abs(float((turned - forward)[0])) > 1e-3
    # Without embeddings of positions, the state of the first token ignores the others' order.
    blind = {**params, "positions": 0 * params["positions"]}
    blind["positions_norm"] = jax.tree.map(jnp.zeros_like, params["positions_norm"])
    for name in ("query", "key"):  # the biases are positions' too
        bias = jnp.zeros_like(blind["layers"][name]["bias"])
        blind["layers"] = {**blind["layers"], name: {**blind["layers"][name], "bias": bias}}
    swapped = np.concatenate([TOKENS[:1, :1], TOKENS[:1, :0:-1]], axis=1)
    np.testing.assert_allclose(
        classify(blind, CONFIG, swapped, LENGTHS[:1]),
        classify(blind, CONFIG, TOKENS[:1], LENGTHS[:1]),
        atol=1e-5,
    )


def test_distances_are_exact_up_to_half_of_the_buckets_and_logarithmic_beyond():
    distances = np.arange(-30, 31)
    buckets = bucketed(distances, 8, 20)
    near = np.abs(distances) <= 4
    np.testing.assert_array_equal(buckets[near], distances[near])
    np.testing.assert_array_equal(buckets, -buckets[::-1])
    assert np.all(np.diff(buckets) >= 0)
    assert buckets[distances == 19] == 7  # the last bucket ends at max_distance - 1
    widths = [np.sum(buckets == bucket) for bucket in (4, 5, 6, 7)]
    assert widths == sorted(widths)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 5), (5, 1), (4, 4), (3, 7)])
def test_scores_by_distance_become_scores_by_position_without_a_gather(m, n):
    x = np.random.default_rng(0).normal(size=(2, 3, m, m + n))
    i, j = np.mgrid[:m, :n]
    np.testing.assert_array_equal(_by_distance(x, n), x[:, :, i, j - i + m - 1])


def test_dropout_needs_a_key():
    params = lively_params()
    kept = classify(params, CONFIG, TOKENS, LENGTHS)
    first, second = (
        classify(params, CONFIG, TOKENS, LENGTHS, jax.random.key(seed)) for seed in (0, 1)
    )
    assert not np.allclose(first, kept, atol=1e-2)
    assert not np.allclose(first, second, atol=1e-2)
    never = dataclasses.replace(CONFIG, dropout=0.0)
    np.testing.assert_array_equal(kept, classify(params, never, TOKENS, LENGTHS, jax.random.key(0)))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"heads": 5}, r"width \(12\) .* heads \(5\)"),
        ({"layers": 0}, "layers"),
        ({"buckets": 1}, "buckets"),
        ({"max_distance": 5}, r"max_distance \(5\) .* buckets \(8\)"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_shapes_are_refused_by_name(change, names):
    with pytest.raises(ValueError, match=names):
        dataclasses.replace(CONFIG, **change)
