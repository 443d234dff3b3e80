"""A trained router on disk: weights as safetensors, settings as JSON; nothing is unpickled."""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from offload_jax.device import params as device_params
from offload_jax.device.params import Params
from offload_jax.files import read_object
from offload_jax.routing import deberta
from offload_jax.routing.classifier import Body, on_device
from offload_jax.routing.deberta import DebertaConfig
from offload_jax.routing.router import RouterConfig
from offload_jax.settings import parse, require

_WEIGHTS, _SETTINGS = "router.safetensors", "router.json"


def save_router(folder: str | Path, params: Params, config: RouterConfig) -> None:
    """Writes `router.safetensors` and, when it is complete, `router.json`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # In rows' order, because safetensors writes the memory as it lies.
    tensors = {name: np.array(x, order="C") for name, x in _named(params).items()}
    _write(folder / _WEIGHTS, safetensors.numpy.save(tensors))
    settings = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    _write(folder / _SETTINGS, settings.encode("utf-8"))


def load_router(folder: str | Path) -> tuple[Params, RouterConfig]:
    """What `save_router` wrote.

    Raises:
        ValueError: a file is missing or broken, or the two do not belong together.
    """
    path = Path(folder) / _SETTINGS
    config = parse(RouterConfig, read_object(path), str(path))
    path = Path(folder) / _WEIGHTS
    tensors = read_tensors(path)
    expected = jax.eval_shape(partial(_any_params, config.body), jax.random.key(0))
    named = _named(expected)
    stray = sorted(named.keys() ^ tensors.keys())
    require(not stray, f"{path} does not belong to {_SETTINGS}: see {', '.join(stray[:3])}.")
    for name, like in named.items():
        found = (tensors[name].shape, tensors[name].dtype)
        require(
            found == (like.shape, like.dtype),
            f"{path}: {name} is {found[1]} {found[0]}; {_SETTINGS} makes it {like.dtype}"
            f" {like.shape}.",
        )
    leaves = [jnp.asarray(tensors[name]) for name in named]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves), config


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file. Raises ValueError naming the file where there are none."""
    require(path.is_file(), f"{path} is missing.")
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}.") from None


def _any_params(body: Body, key: jax.Array) -> Params:
    if isinstance(body, DebertaConfig):
        return deberta.init_params(body, key)
    return on_device(device_params.init_params(body, key), body)


def _named(params: Params) -> dict:
    """Leaves by path, as in `layers/query/kernel`, in the tree's order."""
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _write(path: Path, data: bytes) -> None:
    """All or nothing."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)
