"""A Hugging Face folder: config.json, safetensors, tokenizer; in and out.

Nothing in a folder is executed or unpickled: JSON, safetensors and a sandboxed chat template only.
"""

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers

from offload_jax.device import lora
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params
from offload_jax.files import read_object, write_object
from offload_jax.pretrained.weights import export_tensors
from offload_jax.settings import require
from offload_jax.vocabulary import Vocabulary

# Per `model_type` which of our switches it has.
_FAMILIES = ("llama", "qwen2", "qwen3")

# Keys that would change the model, with the only values that are implemented (or absent).
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "pretraining_tp": (1,),
    "use_sliding_window": (False,),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1, 1.0),
    "quantization_config": (None,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
}
# Keys that we read, and keys that describe training, files or other software.
_READ = {
    "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size", "rms_norm_eps", "rope_theta",
    "rope_scaling", "rope_parameters", "attention_bias", "tie_word_embeddings",
    "max_position_embeddings", "layer_types", "eos_token_id", "bos_token_id", "pad_token_id",
}  # fmt: skip
_HARMLESS = {
    "architectures", "attention_dropout", "initializer_range", "torch_dtype", "dtype", "use_cache",
    "transformers_version", "_name_or_path", "is_llama_config", "transformers.js_config",
    "sliding_window", "max_window_layers", "return_dict", "output_attentions",
    "output_hidden_states", "chunk_size_feed_forward", "id2label", "label2id", "problem_type",
}  # fmt: skip


_ROPE_KEYS = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "low_freq_factor",
    "high_freq_factor", "original_max_position_embeddings",
}  # fmt: skip


def device_config(folder: Path) -> dict[str, Any]:
    """The shape of a device LLM, as fields of `DeviceConfig`, from a folder's config.json.

    Raises:
        ValueError: a field is missing, or the model is not one that is implemented; the sentence
            names the file, the key and its value.
    """
    path = Path(folder) / "config.json"
    values = read_object(path)
    family = values.get("model_type")
    require(
        family in _FAMILIES,
        f"{path}: model_type is {family!r}; implemented are {', '.join(_FAMILIES)}.",
    )
    _refuse_others(path, values)

    def field(key, kind=int):
        require(key in values, f"{path} lacks {key}.")
        return _number(path, key, values[key], kind)

    heads, width = field("num_attention_heads"), field("hidden_size")
    head_size = values.get("head_dim")
    if head_size is None:
        require(
            heads > 0 and width % heads == 0,
            f"{path} has no head_dim, and hidden_size / num_attention_heads is not whole.",
        )
        head_size = width // heads
    biased = values.get("attention_bias", False)
    for key in ("attention_bias", "tie_word_embeddings"):
        value = values.get(key, False)
        require(type(value) is bool, f"{path}: {key} is {value!r}; it must be true or false.")
    return {
        "vocabulary": field("vocab_size"),
        "width": width,
        "layers": field("num_hidden_layers"),
        "heads": heads,
        "kv_heads": _number(path, "num_key_value_heads", values.get("num_key_value_heads", heads)),
        "head_size": _number(path, "head_dim", head_size),
        "mlp": field("intermediate_size"),
        "norm_epsilon": field("rms_norm_eps", float),
        "tied_embeddings": values.get("tie_word_embeddings", False),
        "query_key_value_bias": family == "qwen2" or biased,
        "output_bias": family != "qwen2" and biased,
        "query_key_norm": family == "qwen3",
        "context": field("max_position_embeddings"),
        **_rope(path, values),
    }


def _refuse_others(path: Path, values: Mapping[str, Any]) -> None:
    for key, allowed in _NEUTRAL.items():
        value = values.get(key, allowed[0])
        require(
            value in allowed,
            f"{path}: {key} is {value!r}; only {allowed[0]!r} is implemented.",
        )
    kinds = values.get("layer_types") or ["full_attention"]
    other = [kind for kind in kinds if kind != "full_attention"]
    require(not other, f"{path}: layer_types has {other[:1]}; only full_attention is implemented.")
    unknown = sorted(values.keys() - _READ - _HARMLESS - _NEUTRAL.keys())
    if unknown:
        warnings.warn(f"{path}: {', '.join(unknown)} is not known here and not used.", stacklevel=3)


def _rope(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE's base and scaling; transformers 5 keeps both in `rope_parameters`."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    require(isinstance(scaling, Mapping), f"{path}: its RoPE scaling is not an object.")
    base = scaling.get("rope_theta", values.get("rope_theta"))
    require(base is not None, f"{path} lacks rope_theta.")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    require(
        kind in ("default", "llama3"),
        f"{path}: the RoPE type is {kind!r}; implemented are default and llama3.",
    )
    # transformers 5 keeps the share of a head that is turned here.
    values = {"partial_rotary_factor": 1.0, **scaling}
    part = values["partial_rotary_factor"]
    require(part == 1, f"{path}: partial_rotary_factor is {part!r}; only 1 is implemented.")
    stray = sorted(scaling.keys() - _ROPE_KEYS)
    require(not stray, f"{path}: its RoPE scaling has {stray[:1]}, which is not implemented.")
    fields = {"rope_base": _number(path, "rope_theta", base, float), "rope_scaling": None}
    if kind == "llama3":
        names = {
            "factor": ("factor", float),
            "low_frequency": ("low_freq_factor", float),
            "high_frequency": ("high_freq_factor", float),
            "context": ("original_max_position_embeddings", int),
        }
        for ours, (theirs, type_) in names.items():
            require(theirs in scaling, f"{path}: its RoPE scaling lacks {theirs}.")
            names[ours] = _number(path, theirs, scaling[theirs], type_)
        fields["rope_scaling"] = names
    return fields


def _number(path: Path, key: str, value: Any, kind: type = int) -> Any:
    allowed = (int, float) if kind is float else (int,)
    require(type(value) in allowed, f"{path}: {key} is {value!r}; it must be a number.")
    return kind(value)


# --- weights in ---


class Folder:
    """The tensors of a folder, in one safetensors file or several with an index."""

    def __init__(self, folder: str | Path):
        """Raises ValueError where a file is missing or cut short."""
        self.path = Path(folder)
        self._files: dict[str, Any] = {}
        self._where: dict[str, Path] = {}
        index = self.path / "model.safetensors.index.json"
        if index.is_file():
            names = read_object(index).get("weight_map")
            require(isinstance(names, Mapping) and names, f"{index} has no weight_map.")
            for name, file in names.items():
                require(
                    isinstance(file, str) and Path(file).name == file,
                    f"{index}: {name} lies in {file!r}, which is not a file of this folder.",
                )
                self._where[name] = self.path / file
            for file in sorted(set(self._where.values())):
                self._open(file)
            for name, file in self._where.items():
                require(name in set(self._files[file].keys()), f"{file} lacks the tensor {name}.")
        else:
            file = self.path / "model.safetensors"
            self._open(file)
            self._where = dict.fromkeys(self._files[file].keys(), file)

    def _open(self, file: Path) -> None:
        require(
            file.is_file(),
            f"{file} is missing; weights are read from safetensors and nothing else.",
        )
        try:
            self._files[file] = safetensors.safe_open(file, "numpy")
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as safetensors: {error}.") from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor."""
        return {
            name: tuple(self._files[file].get_slice(name).get_shape())
            for name, file in self._where.items()
        }

    def file(self, name: str) -> Path:
        """Where a tensor lies."""
        return self._where.get(name, self.path)

    def read(self, name: str) -> np.ndarray:
        """One tensor. Raises ValueError for a dtype that is not a float."""
        file = self._where[name]
        kind = self._files[file].get_slice(name).get_dtype()
        require(
            kind in ("F64", "F32", "F16", "BF16"),
            f"{file}: {name} is of the type {kind}; floats of 16 to 64 bits are implemented.",
        )
        return self._files[file].get_tensor(name)


# --- vocabulary in ---


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Tokenizer, chat template and stop tokens of a folder.

    Args:
        folder: holds tokenizer.json; tokenizer_config.json, chat_template.jinja and
            generation_config.json where there are some.
        size: rows of the embedding.

    Raises:
        ValueError: there is no tokenizer, it does not fit, or no token ends a response.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    require(path.is_file(), f"{path} is missing; other forms of tokenizers are not read.")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    check_size(path, tokenizer, size)
    settings = _optional(folder / "tokenizer_config.json")
    special = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = settings.get(key)
        token = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(token, str):
            special[key] = token
    stops = _stops(folder, tokenizer, special, size)
    pad = tokenizer.token_to_id(special["pad_token"]) if "pad_token" in special else None
    return Vocabulary(
        tokenizer, stops, stops[0] if pad is None else pad, _template(folder, settings), special
    )


def check_size(path: Path, tokenizer: tokenizers.Tokenizer, size: int) -> None:
    """Raises ValueError where a token has no row in the embedding."""
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    require(
        largest < size,
        f"{path} has a token of id {largest}; the embedding has {size} rows only.",
    )


def _stops(folder: Path, tokenizer, special: Mapping[str, str], size: int) -> tuple[int, ...]:
    generation, config = (
        _optional(folder / "generation_config.json"),
        read_object(folder / "config.json"),
    )
    ids = generation.get("eos_token_id", config.get("eos_token_id"))
    own = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    ids = list(ids) if isinstance(ids, list) else [ids]
    # The tokenizer's own end comes first: it is what the chat template closes a turn with.
    ids = [i for i in dict.fromkeys([own, *ids]) if i is not None]
    require(bool(ids), f"{folder} names no eos_token: nothing would end a response.")
    for i in ids:
        require(
            type(i) is int and 0 <= i < size,
            f"{folder}: eos_token_id {i!r} is not a token of the model.",
        )
    return tuple(ids)


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


# --- out ---


def save_huggingface(
    folder: str | Path,
    params: Params,
    config: DeviceConfig,
    vocabulary: Vocabulary,
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a folder that `transformers` loads; adapters are merged.

    Args:
        folder: must not hold anything yet; it appears whole or not at all.
        params: the weights.
        config: their shape.
        vocabulary: goes along, with its chat template.
        dtype: of the tensors: float32, bfloat16 or float16.
        shard_bytes: a larger model is split into files of about this size.

    Raises:
        ValueError: the folder is not empty, or no Hugging Face architecture has this shape.
    """
    check_new(folder)
    folder = Path(folder)
    settings = _their_config(config, vocabulary, dtype)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    _write_weights(temporary, lora.merge(params, config), config, dtype, shard_bytes)
    write_object(temporary / "config.json", settings)
    _write_vocabulary(temporary, vocabulary, config)
    if folder.exists():
        folder.rmdir()
    os.replace(temporary, folder)


def check_new(folder: str | Path) -> None:
    """Raises ValueError unless a checkpoint can be written there: nothing is overwritten."""
    folder = Path(folder)
    require(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"{folder} is not empty; a checkpoint is written to a new folder only.",
    )
    there = next(parent for parent in folder.resolve().parents if parent.exists())
    writable = there.is_dir() and os.access(there, os.W_OK)
    require(writable, f"{folder} cannot be written: {there} is not a folder that you may write to.")


def _their_config(config: DeviceConfig, vocabulary: Vocabulary, dtype: str) -> dict[str, Any]:
    bias, norm = (config.query_key_value_bias, config.output_bias), config.query_key_norm
    if bias == (True, False) and not norm:
        family, name = "qwen2", "Qwen2ForCausalLM"
    else:
        require(
            bias[0] == bias[1],
            "No Hugging Face architecture has biases of queries, keys and values with"
            " normalised heads, or of attention's output alone.",
        )
        family, name = ("qwen3", "Qwen3ForCausalLM") if norm else ("llama", "LlamaForCausalLM")
    values = {
        "architectures": [name],
        "model_type": family,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": config.context or 2048,
        "torch_dtype": dtype,
        "bos_token_id": _bos(vocabulary),
        "eos_token_id": vocabulary.stops[0],
        "pad_token_id": vocabulary.pad,
    }
    if family != "qwen2":
        values["attention_bias"] = bias[0]
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency,
            "high_freq_factor": scaling.high_frequency,
            "original_max_position_embeddings": scaling.context,
        }
    return values


def _bos(vocabulary: Vocabulary) -> int | None:
    token = vocabulary.special.get("bos_token")
    return None if token is None else vocabulary.tokenizer.token_to_id(token)


def _write_weights(folder: Path, params: Params, config: DeviceConfig, dtype: str, limit: int):
    shards: list[dict[str, int]] = []
    held: dict[str, np.ndarray] = {}

    def flush():
        # Numbered when it is known how many there are.
        path = folder / f"shard-{len(shards)}"
        path.write_bytes(b"")
        safetensors.numpy.save_file(held, path, metadata={"format": "pt"})
        shards.append({name: x.nbytes for name, x in held.items()})
        held.clear()

    for name, x in export_tensors(params, config):
        # In rows' order, because safetensors writes the memory as it lies.
        held[name] = np.array(jax.device_get(x.astype(dtype)), order="C")
        if sum(x.nbytes for x in held.values()) >= limit:
            flush()
    if held:
        flush()
    if len(shards) == 1:
        os.replace(folder / "shard-0", folder / "model.safetensors")
        return
    where = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / f"shard-{i}", folder / file)
        where |= dict.fromkeys(shard, file)
    total = sum(sum(shard.values()) for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_object(folder / "model.safetensors.index.json", index)


def _write_vocabulary(folder: Path, vocabulary: Vocabulary, config: DeviceConfig) -> None:
    (folder / "tokenizer.json").write_text(vocabulary.tokenizer.to_str(), encoding="utf-8")
    special = dict(vocabulary.special)
    special.setdefault("eos_token", vocabulary.tokenizer.id_to_token(vocabulary.stops[0]))
    special.setdefault("pad_token", vocabulary.tokenizer.id_to_token(vocabulary.pad))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.context or 2048,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if vocabulary.chat_template is not None:
        settings["chat_template"] = vocabulary.chat_template
        file = folder / "chat_template.jinja"
        file.write_text(vocabulary.chat_template, encoding="utf-8")
    write_object(folder / "tokenizer_config.json", settings)
    generation = {"eos_token_id": list(vocabulary.stops), "pad_token_id": vocabulary.pad}
    write_object(folder / "generation_config.json", generation)


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}
