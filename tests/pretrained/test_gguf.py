"""GGUF: the same weights, vocabulary and shape as the folder they were written from."""

import jax
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from offload_jax.device.attention import rope_frequencies
from offload_jax.device.config import DeviceConfig, RopeScaling
from offload_jax.device.params import init_params
from offload_jax.pretrained.checkpoint import Pretrained
from offload_jax.pretrained.gguf import _LAYER, _TOP
from offload_jax.pretrained.weights import export_tensors
from offload_jax.settings import parse

gguf = pytest.importorskip("gguf")

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|end|>", *BYTES, "to", "Ġto", "Ġbe", "be"]
MERGES = ["t o", "Ġ to", "b e", "Ġ be"]
NAMES = {theirs: own for own, theirs in _TOP.items()} | {
    theirs: own for own, theirs in _LAYER.items()
}


def config(**changes):
    return DeviceConfig(len(TOKENS), 32, 2, 4, 2, 8, 32, **{"context": 64, **changes})


def own_name(name):
    if name in NAMES:
        return NAMES[name]
    _, _, number, *middle, kind = name.split(".")
    return f"blk.{number}.{NAMES['.'.join(middle)]}.{kind}"


def interleaved(x, heads):
    """What llama.cpp's converter does to the rows of Llama's queries and keys."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write(path, params, config, architecture="llama", quantised=None, pre="smollm", factors=None):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.mlp)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_key_length(config.head_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}")
    for name, x in export_tensors(params, config):
        x = np.array(x, np.float32)
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            x = interleaved(x, config.heads if "q_proj" in name else config.kv_heads)
        if quantised is not None and x.ndim == 2:
            packed = gguf.quantize(x, quantised)
            writer.add_tensor(own_name(name), packed, raw_dtype=quantised)
        else:
            writer.add_tensor(own_name(name), x)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def params():
    return init_params(config(), jax.random.key(3))


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {}),
        ("llama", {"tied_embeddings": False, "rope_base": 5e5}),
        ("qwen2", {"query_key_value_bias": True}),
        ("qwen3", {"query_key_norm": True}),
    ],
)
def test_weights_and_shape_are_those_that_were_written(tmp_path, architecture, changes):
    expected = config(**changes)
    params = init_params(expected, jax.random.key(3))
    path = write(tmp_path / "model.gguf", params, expected, architecture)
    pretrained = Pretrained(path)
    found = parse(DeviceConfig, pretrained.shape())
    assert found.norm_epsilon == pytest.approx(expected.norm_epsilon)
    assert {**vars(found), "norm_epsilon": 0} == {**vars(expected), "norm_epsilon": 0}
    loaded = pretrained.params(found, jax.random.key(0))
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_quantised_weights_are_near(tmp_path, params):
    kind = gguf.GGMLQuantizationType.Q8_0
    pretrained = Pretrained(write(tmp_path / "q.gguf", params, config(), quantised=kind))
    loaded = pretrained.params(parse(DeviceConfig, pretrained.shape()), jax.random.key(0))
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert np.abs(ours - theirs).max() <= np.abs(theirs).max() / 127


def test_llama_3s_scaling_is_recognised_by_its_divisors(tmp_path, params):
    scaling = RopeScaling(32.0, 1.0, 4.0, 8192)
    scaled = config(rope_base=5e5, rope_scaling=scaling)
    divisors = rope_frequencies(config(rope_base=5e5)) / rope_frequencies(scaled)
    path = write(tmp_path / "s.gguf", params, scaled, factors=divisors)
    assert parse(DeviceConfig, Pretrained(path).shape()).rope_scaling == scaling
    path = write(tmp_path / "o.gguf", params, scaled, factors=3 * divisors)
    with pytest.raises(ValueError, match=r"rope_freqs\.weight is of no RoPE scaling"):
        Pretrained(path).shape()


def test_the_tokenizer_is_the_one_inside(tmp_path, params):
    vocabulary = Pretrained(write(tmp_path / "m.gguf", params, config())).vocabulary()
    ids = vocabulary.encode("to be 12<|end|>")
    text = [TOKENS[i] for i in ids]
    assert text == ["to", "Ġbe", "Ġ", "1", "2", "<|end|>"]  # digits stand alone
    assert vocabulary.tokenizer.decode(ids, skip_special_tokens=False) == "to be 12<|end|>"
    assert vocabulary.stops == (0,) and vocabulary.render([{"content": "x"}]) == "x<|end|>"
    by_pattern = Pretrained(write(tmp_path / "l.gguf", params, config(), pre="llama-bpe"))
    assert by_pattern.vocabulary().encode("to be") == vocabulary.encode("to be")


def test_broken_and_foreign_files_are_named(tmp_path, params):
    path = write(tmp_path / "whole.gguf", params, config())
    data = path.read_bytes()
    for size in (0, 10, 200, len(data) // 2, len(data) - 10):
        broken = tmp_path / f"cut{size}.gguf"
        broken.write_bytes(data[:size])
        with pytest.raises(ValueError, match=rf"cut{size}\.gguf cannot be read as GGUF"):
            Pretrained(broken)
    with pytest.raises(ValueError, match="architecture is 'gpt2'"):
        Pretrained(write(tmp_path / "g.gguf", params, config(), "gpt2"))
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre is 'tekken'"):
        Pretrained(write(tmp_path / "t.gguf", params, config(), pre="tekken")).vocabulary()
