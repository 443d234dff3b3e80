"""How Hugging Face names and lays out the weights that `device.params` describes."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from offload_jax.device.config import MATRICES, DeviceConfig
from offload_jax.device.params import Params, ParamSpec, abstract_params, init_params
from offload_jax.settings import require
from offload_jax.sharding import sharding_of

_TOP = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "output": "self_attn.o_proj.weight",
    "query_bias": "self_attn.q_proj.bias",
    "key_bias": "self_attn.k_proj.bias",
    "value_bias": "self_attn.v_proj.bias",
    "output_bias": "self_attn.o_proj.bias",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}


class Source(Protocol):
    """Tensors of a checkpoint by their Hugging Face names, laid out as torch does: [out, in]."""

    path: Path

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor."""

    def file(self, name: str) -> Path:
        """Where a tensor lies, for error messages."""

    def read(self, name: str) -> np.ndarray:
        """One tensor, from disk."""


def huggingface_name(weight: str, layer: int | None = None) -> str:
    """The name of one of our weights; `layer` for those of a layer."""
    return _TOP[weight] if layer is None else f"model.layers.{layer}.{_LAYER[weight]}"


def load_params(source: Source, config: DeviceConfig, key: jax.Array, mesh: Mesh | None) -> Params:
    """The weights of a checkpoint in the config's dtype, placed on the mesh.

    Tensors are read one by one into the arrays that hold them, each device's part by itself, so
    that the host holds no second copy of the model. Adapters, which no checkpoint has, are fresh.

    Args:
        source: the checkpoint.
        config: its shape (see `huggingface.device_config`, `gguf.device_config`).
        key: randomness of fresh adapters.
        mesh: where to; None: on the default device.

    Raises:
        ValueError: a tensor is missing, of another shape, not finite, or not part of the model;
            the sentence names file and tensor. Shapes are checked before anything is read.
    """
    specs = abstract_params(config)
    adapters = specs.pop("adapters", None)
    _check(source, config, specs)

    def load(spec: ParamSpec, weight: str, stacked: bool) -> jax.Array:
        names = [huggingface_name(weight, i) for i in range(config.layers)] if stacked else None
        one = spec.shape[1:] if stacked else spec.shape

        def part(index):
            if not stacked:
                return _ours(source, huggingface_name(weight), weight, one)[index].astype(
                    spec.dtype
                )
            chosen = names[index[0]]
            first = _ours(source, chosen[0], weight, one)[index[1:]]
            out = np.empty((len(chosen), *first.shape), spec.dtype)
            out[0] = first
            for i, name in enumerate(chosen[1:], 1):
                out[i] = _ours(source, name, weight, one)[index[1:]]
            return out

        if mesh is None:
            return jnp.asarray(part((slice(None),) * len(spec.shape)))
        sharding = sharding_of(mesh, spec.axes, spec.shape)
        return jax.make_array_from_callback(spec.shape, sharding, part)

    params = {name: load(spec, name, False) for name, spec in specs.items() if name != "layers"}
    params["layers"] = {name: load(spec, name, True) for name, spec in specs["layers"].items()}
    if adapters is not None:
        # Of random weights only the adapters are kept, so that jit makes nothing else.
        params["adapters"] = init_params(config, key, mesh, only="adapters")
    return params


def export_tensors(params: Params, config: DeviceConfig) -> Iterator[tuple[str, jax.Array]]:
    """Tensors by Hugging Face name, one after the other, in its layout; without adapters."""
    for weight in ("embedding", "final_norm", *([] if config.tied_embeddings else ["head"])):
        yield huggingface_name(weight), _theirs(params[weight], weight)
    for i in range(config.layers):
        for weight, stacked in params["layers"].items():
            yield huggingface_name(weight, i), _theirs(stacked[i], weight)


def _ours(source: Source, name: str, weight: str, shape: tuple[int, ...]) -> np.ndarray:
    tensor = source.read(name)
    require(
        bool(np.isfinite(tensor).all()),
        f"{source.file(name)}: {name} holds a number that is not finite.",
    )
    if weight in MATRICES or weight == "head":
        tensor = tensor.T
    return tensor.reshape(shape)


def _theirs(x: jax.Array, weight: str) -> jax.Array:
    if weight in MATRICES:
        inputs = math.prod(x.shape[: MATRICES[weight]])
        return x.reshape(inputs, -1).T
    if weight == "head":
        return x.T
    return x.reshape(-1) if weight.endswith("_bias") else x


def _their_shape(spec: ParamSpec, weight: str, stacked: bool) -> tuple[int, ...]:
    shape = spec.shape[1:] if stacked else spec.shape
    return jax.eval_shape(
        lambda x: _theirs(x, weight), jax.ShapeDtypeStruct(shape, spec.dtype)
    ).shape


def _check(source: Source, config: DeviceConfig, specs: Params) -> None:
    """Every tensor is there, in its shape, and there are no others."""
    found = source.shapes()
    needed = {huggingface_name(n): (s, n, False) for n, s in specs.items() if n != "layers"}
    for i in range(config.layers):
        needed |= {huggingface_name(n, i): (s, n, True) for n, s in specs["layers"].items()}
    for name, (spec, weight, stacked) in needed.items():
        require(name in found, f"{source.path} lacks the tensor {name}.")
        shape = _their_shape(spec, weight, stacked)
        require(
            found[name] == shape,
            f"{source.file(name)}: {name} has the shape {found[name]}; the config makes it"
            f" {shape}.",
        )
    strays = sorted(name for name in found.keys() - needed.keys() if not _harmless(name))
    if config.tied_embeddings and "lm_head.weight" in strays:
        same = np.array_equal(source.read("lm_head.weight"), source.read(_TOP["embedding"]))
        require(
            same,
            f"{source.file('lm_head.weight')}: lm_head.weight differs from the embedding, but the"
            " config ties them.",
        )
        strays.remove("lm_head.weight")
    require(
        not strays,
        f"{source.path} has {len(strays)} tensors that this architecture does not use, such as"
        f" {strays[0] if strays else ''}.",
    )


def _harmless(name: str) -> bool:
    """Old checkpoints keep RoPE's frequencies, which follow from the config."""
    return name.endswith("rotary_emb.inv_freq")
