"""Eight fake CPU devices for every test, so that meshes are real; set before jax is imported."""

import gc
import os

import pytest

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops a module's compiled programs at its end.

    Each maps pages of its own, and Linux allows a process 65,530 maps: beyond them XLA segfaults.
    """
    yield
    import jax

    jax.clear_caches()
    gc.collect()
