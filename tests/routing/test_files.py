import dataclasses
import json

import jax
import numpy as np
import pytest

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import init_params
from offload_jax.learning.optimizer import OptimizerConfig
from offload_jax.routing import deberta
from offload_jax.routing.classifier import on_device
from offload_jax.routing.deberta import DebertaConfig
from offload_jax.routing.files import load_router, save_router
from offload_jax.routing.router import RouterConfig

ENCODER = RouterConfig(
    OptimizerConfig(rate=1e-3), deberta=DebertaConfig(9, 8, 2, 2, 12, buckets=4, max_distance=16)
)
DECODER = RouterConfig(
    OptimizerConfig(rate=1e-3),
    device=DeviceConfig(
        vocabulary=9, width=8, layers=1, heads=2, kv_heads=1, head_size=4, mlp=12,
        tied_embeddings=False, param_dtype="bfloat16",
    ),
)  # fmt: skip


def weights(config):
    if config.deberta:
        return deberta.init_params(config.deberta, jax.random.key(0))
    return on_device(init_params(config.device, jax.random.key(0)), config.device)


@pytest.mark.parametrize("config", [ENCODER, DECODER], ids=["deberta", "device"])
def test_a_router_comes_back_as_it_was_saved(tmp_path, config):
    saved = weights(config)
    save_router(tmp_path / "new" / "folder", saved, config)
    loaded, found = load_router(tmp_path / "new" / "folder")
    assert found == config
    assert jax.tree.structure(saved) == jax.tree.structure(loaded)
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(loaded), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_weights_that_lie_transposed_in_memory_are_saved_right(tmp_path):
    saved = jax.tree.map(np.asarray, weights(ENCODER))
    saved["embedding"] = np.asfortranarray(saved["embedding"])
    save_router(tmp_path, saved, ENCODER)
    np.testing.assert_array_equal(load_router(tmp_path)[0]["embedding"], saved["embedding"])


def test_files_that_are_missing_broken_or_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"router\.json is missing"):
        load_router(tmp_path)
    save_router(tmp_path, weights(ENCODER), ENCODER)
    wider = dataclasses.asdict(ENCODER)
    wider["deberta"]["width"] = 10
    (tmp_path / "router.json").write_text(json.dumps(wider))
    with pytest.raises(
        ValueError, match=r"router\.safetensors: embedding is .*\(9, 8\); .*\(9, 10"
    ):
        load_router(tmp_path)
    (tmp_path / "router.json").write_text(json.dumps(dataclasses.asdict(DECODER)))
    with pytest.raises(ValueError, match=r"router\.safetensors does not belong to router\.json"):
        load_router(tmp_path)
    (tmp_path / "router.json").write_text('{"optimiser": {}}')
    with pytest.raises(ValueError, match=r"router\.json\.optimiser is not a setting"):
        load_router(tmp_path)
    (tmp_path / "router.json").write_text("[")
    with pytest.raises(ValueError, match=r"router\.json is not a JSON object"):
        load_router(tmp_path)
    save_router(tmp_path, weights(ENCODER), ENCODER)
    (tmp_path / "router.safetensors").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ValueError, match=r"router\.safetensors cannot be read"):
        load_router(tmp_path)
    (tmp_path / "router.safetensors").unlink()
    with pytest.raises(ValueError, match=r"router\.safetensors is missing"):
        load_router(tmp_path)
