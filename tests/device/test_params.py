import dataclasses
import math

import jax
import numpy as np
import pytest

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import (
    ParamSpec,
    abstract_params,
    count_params,
    fourier_features,
    init_params,
    param_shardings,
)
from offload_jax.sharding import MeshConfig, make_mesh

CONFIG = DeviceConfig(
    vocabulary=24, width=16, layers=2, heads=4, kv_heads=2, head_size=6, mlp=20,
    tied_embeddings=False,
)  # fmt: skip


def test_every_weight_is_described_once_and_made_as_described():
    specs = jax.tree.leaves(abstract_params(CONFIG), is_leaf=lambda x: isinstance(x, ParamSpec))
    params = jax.tree.leaves(init_params(CONFIG, jax.random.key(0)))
    assert [p.shape for p in params] == [s.shape for s in specs]
    assert all(len(s.axes) == len(s.shape) for s in specs)
    assert count_params(CONFIG) == sum(p.size for p in params)
    D, H, K, N, F, V, L = 16, 4, 2, 6, 20, 24, 2
    by_hand = 2 * V * D + L * (D * (2 * H + 2 * K) * N + 3 * D * F + 2 * D) + D
    assert count_params(CONFIG) == by_hand


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_initial_weights_are_the_same_numbers_on_every_mesh(shape):
    mesh = make_mesh(MeshConfig(*shape))
    alone = init_params(CONFIG, jax.random.key(0))
    spread = init_params(CONFIG, jax.random.key(0), mesh)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), alone, spread)
    jax.tree.map(
        lambda s, x: (_ for _ in ()).throw(AssertionError) if s != x.sharding else None,
        param_shardings(CONFIG, mesh),
        spread,
    )


def test_key_value_heads_fewer_than_the_tensor_axis_are_replicated_and_others_must_divide():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    shardings = param_shardings(CONFIG, mesh)
    assert shardings["layers"]["key"].spec[2] is None
    assert shardings["layers"]["query"].spec[2] is not None
    with pytest.raises(ValueError, match=r"'mlp' of size 18 .* 4 parts .*config\.mesh"):
        param_shardings(dataclasses.replace(CONFIG, mlp=18), mesh)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"kv_heads": 3}, r"config\.device\.heads .* config\.device\.kv_heads"),
        ({"head_size": 5}, r"config\.device\.head_size"),
        ({"layers": 0}, r"config\.device\.layers"),
    ],
)
def test_impossible_shapes_are_refused_by_name(change, names):
    with pytest.raises(ValueError, match=names):
        dataclasses.replace(CONFIG, **change)


def test_fourier_features_put_near_numbers_near_and_have_the_scale_of_random_rows():
    rows = np.array(fourier_features(np.arange(120), 32))
    np.testing.assert_allclose((rows**2).sum(axis=1), 1.0, rtol=1e-5)
    slow = rows[:, [15, 31]]  # the longest period is 256
    assert np.linalg.norm(slow[10] - slow[11]) < np.linalg.norm(slow[10] - slow[40])
    assert math.isclose(rows[0, 15], rows[0, :16].max(), rel_tol=1e-6)
