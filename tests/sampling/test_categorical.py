import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.sampling import categorical

SIZES = [1, 2, 7, 64, 97, 160, 1009]  # primes need padding


def scores(V, rows=1, seed=0):
    return 2.0 * jax.random.normal(jax.random.key(seed), (V, rows, 1))


@pytest.mark.parametrize("V", [7, 12, 97])
def test_tokens_come_as_often_as_the_softmax_says(V):
    N = 40_000
    one = scores(V)
    keys = jax.random.split(jax.random.key(1), N)[:, None]
    tokens, _ = jax.jit(categorical.sample)(keys, jnp.broadcast_to(one, (V, N, 1)))
    p = np.asarray(jax.nn.softmax(one[:, 0, 0]), np.float64)
    seen = np.bincount(np.asarray(tokens).ravel(), minlength=V)
    chi2 = ((seen - N * p) ** 2 / (N * p)).sum()
    assert len(seen) == V
    assert chi2 < V - 1 + 5 * np.sqrt(2 * (V - 1))


@pytest.mark.parametrize("V", SIZES)
def test_log_probabilities_are_those_of_the_softmax(V):
    rows = scores(V, rows=50)
    expected = jax.nn.log_softmax(rows, axis=0)
    keys = jax.random.split(jax.random.key(2), 50)[:, None]
    for tokens, logprobs in (categorical.sample(keys, rows), categorical.argmax(rows)):
        chosen = jnp.take_along_axis(expected, tokens[None], axis=0)[0]
        np.testing.assert_allclose(logprobs, chosen, atol=1e-5)
        assert (tokens < V).all()


@pytest.mark.parametrize("V", SIZES)
def test_argmax_takes_the_first_of_equals(V):
    tied = jnp.round(scores(V, rows=50))
    tokens, _ = categorical.argmax(tied)
    np.testing.assert_array_equal(tokens, jnp.argmax(tied, axis=0))


def test_a_draw_depends_on_its_own_key_alone():
    rows = jnp.broadcast_to(scores(97), (97, 6, 1))
    keys = jax.random.split(jax.random.key(4), 6)[:, None]
    tokens, _ = categorical.sample(keys, rows)
    moved, _ = categorical.sample(keys[::-1], rows)
    np.testing.assert_array_equal(moved[::-1], tokens)


def test_impossible_tokens_are_never_drawn_and_large_scores_do_not_overflow():
    rows = jnp.full((100, 500, 1), -jnp.inf).at[42].set(1e4).at[77].set(1e4)
    keys = jax.random.split(jax.random.key(5), 500)[:, None]
    tokens, logprobs = categorical.sample(keys, rows)
    assert set(np.unique(tokens)) == {42, 77}
    np.testing.assert_allclose(logprobs, -np.log(2), atol=1e-5)


@pytest.mark.parametrize(
    ("V", "size"), [(160, 10), (49_152, 192), (151_936, 32), (1009, 32), (6, 2)]
)
def test_blocks_divide_the_vocabulary_where_they_can(V, size):
    assert categorical.block_size(V) in (size, V // size)


@pytest.mark.parametrize("V", [160, 49_152, 128_256, 151_936, 152_064])
def test_no_block_straddles_the_parts_of_a_split_vocabulary(V):
    assert V // categorical.block_size(V) % 4 == 0
