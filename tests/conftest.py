"""Eight fake CPU devices for every test, so that meshes are real; set before jax is imported.

Tests compile much and compute little: LLVM's optimisations and XLA's newer code generator for
fusions are off, each of which would take more than a third of it.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile

import pytest

QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false"
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is in what a shell starts in the background; children that tests interrupt inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} {QUICK} --xla_force_host_platform_device_count=8"
)
# For processes of their own, whose devices a test chooses: what stands in front of them.
os.environ["QUICK_XLA_FLAGS"] = QUICK
os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Workers and the processes that tests start inherit it: no program is compiled twice.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="programs")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops a module's compiled programs at its end.

    Each maps pages of its own, and Linux allows a process 65,530 maps: beyond them XLA segfaults.
    """
    yield
    import jax

    jax.clear_caches()
    gc.collect()
