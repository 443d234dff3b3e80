"""DeBERTa-v3 weights as `transformers` saves them: `config.json` and `model.safetensors`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from offload_jax.device.params import Params
from offload_jax.files import read_object
from offload_jax.routing.deberta import DebertaConfig, init_params
from offload_jax.routing.files import read_tensors
from offload_jax.settings import require

# What `deberta.encode` is, in the names of config.json: (value if absent, the one value it may be).
_FIXED: dict[str, tuple[Any, Any]] = {
    "model_type": (None, "deberta-v2"),
    "relative_attention": (False, True),
    "position_biased_input": (True, False),
    "norm_rel_ebd": ("none", "layer_norm"),
    "share_att_key": (False, True),
    "hidden_act": ("gelu", "gelu"),
    "pooler_hidden_act": ("gelu", "gelu"),
    "type_vocab_size": (0, 0),
    "conv_kernel_size": (0, 0),
}

# What a folder of a pretrained model may hold beside the encoder; a router needs none of it.
_IGNORED = ("cls.", "lm_predictions.", "mask_predictions.", "embeddings.position_")

_LAYER = {
    "query": "attention.self.query_proj",
    "key": "attention.self.key_proj",
    "value": "attention.self.value_proj",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def huggingface_config(folder: str | Path, dropout: float = 0.1) -> DebertaConfig:
    """The shape of the model in `folder`, with a dropout of one's own.

    Raises:
        ValueError: `config.json` is missing or describes what is not implemented; the sentence
            names the file and the key.
    """
    path = Path(folder) / "config.json"
    values = read_object(path)
    _refuse_others(path, values)

    def number(key, kind=int):
        value = values.get(key)
        allowed = (int, float) if kind is float else (int,)
        require(type(value) in allowed, f"{path}: {key} is {value!r}; it must be a number.")
        return kind(value)

    reach = values.get("max_relative_positions", -1)
    distances = "max_relative_positions" if reach != -1 else "max_position_embeddings"
    try:
        return DebertaConfig(
            vocabulary=number("vocab_size"),
            width=number("hidden_size"),
            layers=number("num_hidden_layers"),
            heads=number("num_attention_heads"),
            mlp=number("intermediate_size"),
            buckets=number("position_buckets"),
            max_distance=number(distances),
            norm_epsilon=number("layer_norm_eps", float),
            dropout=dropout,
        )
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def load_huggingface(folder: str | Path, config: DebertaConfig, key: jax.Array) -> Params:
    """Weights of a `DebertaV2Model` or `DebertaV2ForSequenceClassification`, as float32.

    A classifier of two labels becomes one logit, that of its label 1 against its label 0. Without
    a classifier in the file, pooler and head are random.

    Args:
        folder: holds `config.json` and `model.safetensors`.
        config: must be `huggingface_config(folder)`, whatever its dropout.
        key: randomness of what the file lacks.

    Raises:
        ValueError: files are missing or broken, the model is not implemented, or `config` is of
            another shape.
    """
    _refuse_other_shape(folder, config)
    path = Path(folder) / "model.safetensors"
    require(path.is_file(), f"{path} is missing; weights are read from that one file only.")
    tensors = read_tensors(path)
    tensors = {name.removeprefix("deberta."): x for name, x in tensors.items()}
    tensors = {name: x for name, x in tensors.items() if not name.startswith(_IGNORED)}

    params = init_params(config, key)
    parts = {**params, **_encoder(path, tensors, params, config.layers)}
    if "classifier.weight" in tensors:
        parts["pooler"] = _module(path, tensors, "pooler.dense", params["pooler"])
        parts["head"] = _head(path, tensors, config.width)
    require(
        not tensors, f"{path} has a tensor that is not implemented: {min(tensors, default='')}."
    )
    return jax.tree.map(jax.numpy.asarray, parts)


def _refuse_others(path, values):
    for key, (absent, needed) in _FIXED.items():
        value = values.get(key, absent)
        require(value == needed, f"{path}: {key} is {value!r}; only {needed!r} is implemented.")
    kinds = values.get("pos_att_type")
    named = kinds.split("|") if isinstance(kinds, str) else kinds
    require(
        isinstance(named, list) and sorted(map(str, named)) == ["c2p", "p2c"],
        f"{path}: pos_att_type is {kinds!r}; only c2p and p2c together are implemented.",
    )
    width, heads = values.get("hidden_size"), values.get("num_attention_heads")
    for key in ("embedding_size", "pooler_hidden_size"):
        value = values.get(key, width)
        require(value == width, f"{path}: {key} is {value!r}; only hidden_size is implemented.")
    if values.get("attention_head_size") is not None:
        require(
            type(heads) is int and values["attention_head_size"] * heads == width,
            f"{path}: attention_head_size is {values['attention_head_size']!r}; only hidden_size /"
            " num_attention_heads is implemented.",
        )


def _refuse_other_shape(folder, config):
    found = huggingface_config(folder, config.dropout)
    for name, value in vars(found).items():
        own = getattr(config, name)
        require(own == value, f"{name} is {own}, but {Path(folder) / 'config.json'} has {value}.")


def _encoder(path, tensors, params, L):
    """The encoder's part of the tree; what is used is taken out of `tensors`."""

    def module(name, like):
        return _module(path, tensors, name, like)

    def stacked(name, like):
        first = jax.tree.map(lambda x: x[0], like)
        layers = [module(f"encoder.layer.{i}.{name}", first) for i in range(L)]
        return jax.tree.map(lambda *x: np.stack(x), *layers)

    return {
        "embedding": _take(
            path, tensors, "embeddings.word_embeddings.weight", params["embedding"].shape
        ),
        "embedding_norm": module("embeddings.LayerNorm", params["embedding_norm"]),
        "positions": _take(
            path, tensors, "encoder.rel_embeddings.weight", params["positions"].shape
        ),
        "positions_norm": module("encoder.LayerNorm", params["positions_norm"]),
        "layers": {
            name: stacked(theirs, params["layers"][name]) for name, theirs in _LAYER.items()
        },
    }


def _module(path, tensors, name, like):
    """A dense layer (torch keeps [out, in]) or a norm, shaped as `like`."""
    if "scale" in like:
        scale = _take(path, tensors, f"{name}.weight", like["scale"].shape)
        return {"scale": scale, "bias": _take(path, tensors, f"{name}.bias", like["bias"].shape)}
    kernel = _take(path, tensors, f"{name}.weight", like["kernel"].shape[::-1]).T
    return {"kernel": kernel, "bias": _take(path, tensors, f"{name}.bias", like["bias"].shape)}


def _head(path, tensors, D):
    labels = len(tensors["classifier.weight"])
    require(
        labels in (1, 2), f"{path}: classifier.weight has {labels} labels; 1 or 2 are implemented."
    )
    kernel = _take(path, tensors, "classifier.weight", (labels, D))
    bias = _take(path, tensors, "classifier.bias", (labels,))
    if labels == 2:
        kernel, bias = np.diff(kernel, axis=0), np.diff(bias)
    return {"kernel": kernel.T, "bias": bias}


def _take(path, tensors, name, shape):
    """Takes one tensor out of `tensors`, as float32."""
    require(name in tensors, f"{path} lacks the tensor {name}.")
    tensor = tensors.pop(name)
    require(
        tensor.shape == tuple(shape),
        f"{path}: {name} has the shape {tensor.shape}; config.json makes it {tuple(shape)}.",
    )
    return tensor.astype(np.float32)
