"""A GGUF file (llama.cpp's format): weights, dequantised, with the tokenizer that it carries."""

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from offload_jax.device.attention import rope_frequencies
from offload_jax.device.config import DeviceConfig, RopeScaling
from offload_jax.settings import require
from offload_jax.vocabulary import Vocabulary

# Per `general.architecture`: whether its converter interleaved the rows of queries and keys.
_INTERLEAVED = {"llama": True, "qwen2": False, "qwen3": False}

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FACTORS = "rope_freqs.weight"  # Llama 3's scaling, as divisors of the frequencies

# Llama 3.1 and 3.2, the models that carry `rope_freqs`, differ in the factor alone.
_LLAMA3 = [RopeScaling(factor, 1.0, 4.0, 8192) for factor in (8.0, 32.0)]

# The splitting patterns behind `tokenizer.ggml.pre`, as their models' tokenizer.json has them.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_PATTERNS = {
    "llama-bpe": _LETTERS + r"|\p{N}{1,3}" + _REST,
    "qwen2": _LETTERS + r"|\p{N}" + _REST,
}
_CONTROL, _USER_DEFINED = 3, 4  # token types


class GgufFile:
    """The tensors of a GGUF file by their Hugging Face names (a `weights.Source`), and the rest."""

    def __init__(self, path: str | Path):
        """Raises ValueError where the file is missing, broken, cut short or not implemented."""
        self.path = Path(path)
        require(self.path.is_file(), f"{self.path} is missing.")
        try:
            import gguf
        except ImportError:
            raise ValueError(
                f"{self.path} needs the package gguf: pip install 'offload_jax[llm]'."
            ) from None
        try:
            reader = gguf.GGUFReader(self.path)
            self._fields = dict(reader.fields)
            self._tensors = {t.name: t for t in reader.tensors}
            self.architecture = self._value("general.architecture")
        except (ValueError, IndexError, KeyError, OSError, TypeError, OverflowError) as error:
            raise ValueError(f"{self.path} cannot be read as GGUF: {error}.") from None
        require(
            self.architecture in _INTERLEAVED,
            f"{self.path}: the architecture is {self.architecture!r}; implemented are"
            f" {', '.join(_INTERLEAVED)}.",
        )
        self._names = {self._huggingface(name): name for name in self._tensors if name != _FACTORS}

    # --- shape ---

    def device_config(self) -> dict[str, Any]:
        """The shape, as fields of `DeviceConfig`. Raises ValueError naming file and key."""
        prefix = self.architecture
        heads, width = self._number("attention.head_count"), self._number("embedding_length")
        scaling = self._fields.get(f"{prefix}.rope.scaling.type")
        require(
            scaling is None or scaling.contents() == "none",
            f"{self.path}: {prefix}.rope.scaling.type is"
            f" {scaling and scaling.contents()!r}; it is not implemented.",
        )
        names = self._names
        fields = {
            "vocabulary": self.shapes()["model.embed_tokens.weight"][0]
            if "model.embed_tokens.weight" in names
            else self._number("vocab_size"),
            "width": width,
            "layers": self._number("block_count"),
            "heads": heads,
            "kv_heads": self._number("attention.head_count_kv", heads),
            "head_size": self._number("attention.key_length", width // max(heads, 1)),
            "mlp": self._number("feed_forward_length"),
            "rope_base": self._number("rope.freq_base", kind=float),
            "norm_epsilon": self._number("attention.layer_norm_rms_epsilon", kind=float),
            "tied_embeddings": "lm_head.weight" not in names,
            "query_key_value_bias": "model.layers.0.self_attn.q_proj.bias" in names,
            "output_bias": "model.layers.0.self_attn.o_proj.bias" in names,
            "query_key_norm": "model.layers.0.self_attn.q_norm.weight" in names,
            "context": self._number("context_length"),
            "rope_scaling": None,
        }
        turned = self._number("rope.dimension_count", fields["head_size"])
        require(
            turned == fields["head_size"],
            f"{self.path}: {prefix}.rope.dimension_count is {turned}; only the head size"
            f" ({fields['head_size']}) is implemented.",
        )
        if _FACTORS in self._tensors:
            fields["rope_scaling"] = vars(self._scaling(fields)).copy()
        return fields

    def _scaling(self, fields: dict[str, Any]) -> RopeScaling:
        """Which of Llama 3's scalings the divisors of the frequencies belong to."""
        divisors = self._dequantised(_FACTORS)
        plain = DeviceConfig(**{**fields, "rope_scaling": None})
        for scaling in _LLAMA3:
            scaled = DeviceConfig(**{**fields, "rope_scaling": scaling})
            expected = rope_frequencies(plain) / rope_frequencies(scaled)
            if divisors.shape == expected.shape and np.allclose(divisors, expected, rtol=1e-3):
                return scaling
        raise ValueError(f"{self.path}: {_FACTORS} is of no RoPE scaling that is implemented.")

    # --- tensors ---

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face name and shape of every tensor."""
        return {
            name: tuple(int(n) for n in reversed(self._tensors[own].shape))
            for name, own in self._names.items()
        }

    def file(self, name: str) -> Path:
        """Where a tensor lies: in this file."""
        return self.path

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32. Raises ValueError for a quantisation that is not implemented."""
        x = self._dequantised(self._names[name]).reshape(self.shapes()[name])
        queries = self._number("attention.head_count")
        keys = self._number("attention.head_count_kv", queries)
        for part, heads in (("q_proj", queries), ("k_proj", keys)):
            if f".{part}." in name and _INTERLEAVED[self.architecture]:
                x = x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        return x

    def _dequantised(self, own: str) -> np.ndarray:
        import gguf

        tensor = self._tensors[own]
        try:
            return gguf.dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"{self.path}: {own} cannot be dequantised: {error}.") from None

    def _huggingface(self, own: str) -> str:
        if own in _TOP:
            return _TOP[own]
        head, _, rest = own.partition(".")
        number, _, rest = rest.partition(".")
        name, _, kind = rest.rpartition(".")
        if head == "blk" and number.isdecimal() and name in _LAYER:
            return f"model.layers.{number}.{_LAYER[name]}.{kind}"
        return own  # unknown: it will be refused by that name

    # --- metadata ---

    def _value(self, key: str) -> Any:
        require(key in self._fields, f"{self.path} lacks {key}.")
        return self._fields[key].contents()

    def _number(self, key: str, default: Any = None, kind: type = int) -> Any:
        key = f"{self.architecture}.{key}"
        if key not in self._fields and default is not None:
            return default
        value = self._value(key)
        allowed = (int, float) if kind is float else (int,)
        require(type(value) in allowed, f"{self.path}: {key} is {value!r}; it must be a number.")
        return kind(value)

    # --- vocabulary ---

    def vocabulary(self) -> Vocabulary:
        """The tokenizer with its chat template.

        Raises:
            ValueError: it is not byte-level BPE, or splits text in a way that is not implemented.
        """
        model, split = self._value("tokenizer.ggml.model"), self._value("tokenizer.ggml.pre")
        require(
            model == "gpt2",
            f"{self.path}: tokenizer.ggml.model is {model!r}; only 'gpt2' is implemented.",
        )
        tokens = self._value("tokenizer.ggml.tokens")
        kinds = self._value("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in self._value("tokenizer.ggml.merges")]
        tokenizer = tokenizers.Tokenizer(
            models.BPE(
                vocab={token: i for i, token in enumerate(tokens)},
                merges=merges,
                ignore_merges=split == "llama-bpe",
            )
        )
        tokenizer.pre_tokenizer = self._splitting(split)
        if split == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.decoder = decoders.ByteLevel()
        added = [
            tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
        tokenizer.add_tokens(added)
        special = {}
        for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
            field = self._fields.get(f"tokenizer.ggml.{key}_token_id")
            if field is not None:
                i = field.contents()
                require(
                    0 <= i < len(tokens),
                    f"{self.path}: tokenizer.ggml.{key}_token_id is {i}; there are"
                    f" {len(tokens)} tokens.",
                )
                special[name] = tokens[i]
        ends = [self._fields.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom")]
        stop = self._value("tokenizer.ggml.eos_token_id")
        # The end of a turn comes first: it is what a chat's reply ends with.
        stops = dict.fromkeys([*(field.contents() for field in ends if field is not None), stop])
        pad = self._fields.get("tokenizer.ggml.padding_token_id")
        template = self._fields.get("tokenizer.chat_template")
        return Vocabulary(
            tokenizer,
            tuple(stops),
            stop if pad is None else pad.contents(),
            None if template is None else template.contents(),
            special,
        )

    def _splitting(self, name: str) -> pre_tokenizers.PreTokenizer:
        if name == "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            return pre_tokenizers.Sequence(
                [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        require(
            name in _PATTERNS,
            f"{self.path}: tokenizer.ggml.pre is {name!r}; implemented are smollm,"
            f" {', '.join(_PATTERNS)}.",
        )
        pattern = tokenizers.Regex(_PATTERNS[name])
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern, behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
