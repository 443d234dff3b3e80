import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from offload_jax.sharding import (
    MeshConfig,
    constrain,
    gathered,
    make_mesh,
    prepare_tpus,
    sharding_of,
)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8])


def test_weights_are_split_along_the_width_while_training_and_whole_while_sampling(mesh):
    axes, shape = ("width", "heads", None), (8, 4, 6)
    assert sharding_of(mesh, axes, shape).spec == PartitionSpec(("fsdp",), ("tensor",), None)
    rollout = sharding_of(mesh, axes, shape, "rollout")
    assert rollout.spec == PartitionSpec(None, ("tensor",), None)


def test_two_axes_of_one_array_on_one_mesh_axis_are_refused(mesh):
    with pytest.raises(ValueError, match=r"'heads' and 'mlp' of one array.*config.mesh.tensor"):
        sharding_of(mesh, ("heads", "mlp"), (4, 4))
    with pytest.raises(ValueError, match=r"'prompts' and 'width' of one array.*config.mesh.fsdp"):
        sharding_of(mesh, ("prompts", "width"), (4, 4))


def test_what_does_not_divide_is_refused_by_name(mesh):
    with pytest.raises(ValueError, match=r"'width' of size 7.*2 parts.*config.mesh.*fsdp"):
        sharding_of(mesh, ("width",), (7,))
    assert sharding_of(mesh, ("kv_heads",), (1,)).spec == PartitionSpec(None)


def test_constraints_hold_on_the_cpu(mesh):
    with jax.set_mesh(mesh):
        x = jax.jit(lambda x: constrain(2 * x, "prompts", None))(np.ones((8, 4), np.float32))
    assert x.sharding.shard_shape(x.shape) == (2, 4)


def test_a_gathered_weight_is_whole_and_its_gradient_split(mesh):
    axes = ("width", "mlp")
    weight = jax.device_put(np.ones((8, 4), np.float32), sharding_of(mesh, axes, (8, 4)))
    with jax.set_mesh(mesh):
        whole = jax.jit(lambda w: gathered(w, axes))(weight)
        gradient = jax.jit(jax.grad(lambda w: (jnp.ones((8, 8)) @ gathered(w, axes)).sum()))(weight)
    assert whole.sharding.shard_shape((8, 4)) == (8, 2)
    assert gradient.sharding.shard_shape((8, 4)) == (4, 2)
    np.testing.assert_array_equal(gradient, 8)


def test_what_the_user_tells_tpus_compiler_is_kept(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_a=1")
    prepare_tpus()
    ours = os.environ["LIBTPU_INIT_ARGS"]
    prepare_tpus()
    assert ours == os.environ["LIBTPU_INIT_ARGS"] and ours.startswith("--xla_a=1 --xla_jf_spmd_")
    own = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=5"
    monkeypatch.setenv("LIBTPU_INIT_ARGS", own)
    prepare_tpus()
    assert os.environ["LIBTPU_INIT_ARGS"] == own
