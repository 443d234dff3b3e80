import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import init_params, param_shardings
from offload_jax.sampling.compaction import (
    Grid,
    grids,
    pack,
    take_rows,
    take_tiles,
    tiles_needed,
)
from offload_jax.sampling.rollout import PromptBatch, SamplingConfig, rollout, step_key
from offload_jax.sharding import MeshConfig, make_mesh, place

DEVICE = DeviceConfig(
    vocabulary=30, width=16, layers=2, heads=4, kv_heads=2, head_size=6, mlp=20, rope_base=100.0
)
P, G, S, T = 8, 8, 4, 20
RNG = np.random.default_rng(3)
PROMPTS = PromptBatch(
    np.arange(P, dtype=np.int32) + 5,
    RNG.integers(2, 30, (P, S)).astype(np.int32),
    RNG.integers(1, S + 1, P).astype(np.int32),
)
SAMPLING = SamplingConfig(group=G, prompt_tokens=S, response_tokens=T, cache_tokens=4)
LIMITS = np.minimum(RNG.geometric(1 / 5, (P, G)), T).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 1.5 * x, init_params(DEVICE, jax.random.key(0)))


def sample(params, prompts=PROMPTS, limits=LIMITS, **changes):
    sampling = dataclasses.replace(SAMPLING, **changes)
    rolled = rollout(
        params, prompts, step_key(0, 0), limits, config=DEVICE, sampling=sampling, stops=(1,), pad=0
    )
    return jax.device_get(rolled)


def same(one, other):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.lengths, other.lengths)
    np.testing.assert_array_equal(one.stopped, other.stopped)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.parametrize("shrink", [0.6, 0.3])
def test_dropping_finished_rows_changes_no_response(params, shrink):
    same(sample(params, shrink=shrink), sample(params, shrink=1.0))


def test_rows_that_all_run_to_the_end_pass_through_every_grid(params):
    limits = np.full((P, G), T, np.int32)
    limits[:, 1:] = 2  # from 64 rows to one per prompt at once
    same(sample(params, limits=limits, shrink=0.7), sample(params, limits=limits, shrink=1.0))


def test_shards_pack_their_own_rows(params):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    whole = sample(params, shrink=1.0)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(DEVICE, mesh))
        batch, limits = place(mesh, (PROMPTS, LIMITS), "prompts")
        same(sample(placed, batch, limits, shrink=0.5), whole)


def test_limits_end_a_response_without_a_stop_token(params):
    rolled = sample(params)
    assert (rolled.lengths <= LIMITS).all()
    assert (rolled.lengths[~rolled.stopped] == LIMITS[~rolled.stopped]).all()
    assert rolled.stopped.any() and not rolled.stopped.all()


def test_grids_shrink_and_keep_tiles_as_wide_as_pays():
    chain = grids(8, 8, 0.75)
    assert chain[0] == Grid(8, 8)
    rows = [tiles * width for tiles, width in chain]
    assert all(0.7 <= small / large <= 0.8 for large, small in itertools.pairwise(rows))
    assert rows[-1] >= 8
    widths = [width for _, width in chain]
    assert widths == sorted(widths, reverse=True) and 2 in widths and widths[-1] == 1
    assert grids(8, 8, 1.0) == [Grid(8, 8)]
    assert grids(1, 4, 0.5) == [Grid(1, 4)]


@pytest.mark.parametrize("seed", range(5))
def test_packing_keeps_every_running_row_with_its_prompt(seed):
    rng = np.random.default_rng(seed)
    D, prompts, G = 2, 5, 6
    prompt = jnp.tile(jnp.arange(prompts), (D, 1))
    running = jnp.array(rng.random((D, prompts, G)) < 0.5)
    width = int(rng.integers(1, 4))
    per_prompt = np.asarray(running).sum(-1)
    expected = (-(-per_prompt // width)).sum(-1)
    grid = Grid(int(expected.max()), width)
    assert (tiles_needed(prompt, running, prompts, grid) == expected).all()

    packing = pack(prompt, running, prompts, grid)
    names = jnp.arange(D * prompts * G).reshape(D * prompts, G)
    taken = np.asarray(take_rows(names, packing))
    filled = np.asarray(packing.filled).reshape(-1, width)
    assert sorted(taken[filled]) == sorted(np.asarray(names)[np.asarray(running).reshape(-1, G)])
    owners = np.asarray(take_tiles(prompt.reshape(-1), packing))
    for tile, owner, real in zip(taken, owners, filled, strict=True):
        assert all(name // G % prompts == owner for name in tile[real])
