"""Each broken checkpoint is one sentence that names the file and what is wrong with it."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from offload_jax.device.config import DeviceConfig
from offload_jax.pretrained.checkpoint import Pretrained
from offload_jax.pretrained.huggingface import save_huggingface
from offload_jax.settings import parse
from tests.pretrained.folders import tokenizer, vocabulary, write_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "model"
    config, params = write_checkpoint(folder, tied_embeddings=False, query_key_value_bias=True)
    return folder, config, params


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "model")
    return tmp_path / "model"


def load(folder):
    pretrained = Pretrained(folder)
    config = parse(DeviceConfig, pretrained.shape())
    pretrained.vocabulary()
    return config, pretrained.params(config, jax.random.key(0))


def change_config(folder, **changes):
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def test_what_was_written_is_read_again(whole, folder):
    _, config, params = whole
    again, loaded = load(folder)
    assert again == config
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_checkpoint_is_read_as_what_it_holds(whole, tmp_path, dtype):
    _, config, params = whole
    save_huggingface(tmp_path / "narrow", params, config, vocabulary(), dtype=dtype)
    _, loaded = load(tmp_path / "narrow")
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    expected = np.asarray(params["embedding"]).astype(narrow).astype(np.float32)
    np.testing.assert_array_equal(loaded["embedding"], expected)


def test_weights_are_read_in_the_configs_dtype(folder):
    pretrained = Pretrained(folder)
    config = parse(DeviceConfig, {**pretrained.shape(), "param_dtype": "bfloat16"})
    params = pretrained.params(config, jax.random.key(0))
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"bfloat16"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, r"config\.json: model_type is 'mistral'"),
        ({"hidden_act": "gelu"}, r"config\.json: hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "lacks low_freq_factor"),
        ({"rope_theta": "absent"}, "lacks rope_theta"),
        ({"rms_norm_eps": "absent"}, "lacks rms_norm_eps"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'; it must be a number"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["sliding_attention"]}, "layer_types has .'sliding_attention'."),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"num_hidden_layers": 3}, r"lacks the tensor model\.layers\.2"),
        ({"num_hidden_layers": 1}, r"tensors that this architecture does not use.*layers\.1"),
        ({"intermediate_size": 25}, r"mlp\.gate_proj\.weight has the shape \(24, 32\).*\(25, 32\)"),
        ({"tie_word_embeddings": True}, "differs from the embedding, but the config ties them"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_an_unknown_key_is_told(folder):
    change_config(folder, embedding_multiplier=12)
    with pytest.warns(UserWarning, match="embedding_multiplier is not known here and not used"):
        load(folder)


NAME = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), f"lacks the tensor {NAME}"),
        (lambda t: t.update({NAME: t[NAME][:5].copy()}), rf"{NAME} has the shape \(5, 32\)"),
        (lambda t: t[NAME].__setitem__((3, 3), np.nan), f"{NAME} holds a number that is not fin"),
        (lambda t: t[NAME].__setitem__((3, 3), -np.inf), f"{NAME} holds a number that is not fin"),
        (lambda t: t.update({"extra.weight": np.ones(3, np.float32)}), r"such as extra\.weight"),
        (lambda t: t.update({NAME: t[NAME].astype(np.int8)}), f"{NAME} is of the type I8"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(ValueError, match=rf"model.*{message}"):
        load(folder)


def test_a_file_that_is_cut_short_or_missing_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as safetensors"):
        load(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickled")  # never read
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        load(folder)


def test_a_missing_shard_is_named(whole, tmp_path):
    _, config, params = whole
    folder = tmp_path / "sharded"
    save_huggingface(folder, params, config, vocabulary(), shard_bytes=4_000)
    load(folder)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard.name} is missing"):
        load(folder)
    index = folder / "model.safetensors.index.json"
    weights = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    index.write_text(json.dumps(weights))
    with pytest.raises(ValueError, match="which is not a file of this folder"):
        load(folder)


def test_a_tokenizer_beyond_the_embedding_is_refused(folder):
    larger = tokenizer()
    larger.add_tokens([f"word{i}" for i in range(60)])
    (folder / "tokenizer.json").write_text(larger.to_str())
    with pytest.raises(ValueError, match=r"tokenizer\.json has a token of id 71; .* has 64 rows"):
        load(folder)


def test_a_broken_or_missing_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        load(folder)


def test_a_model_that_nothing_ends_is_refused(folder):
    (folder / "generation_config.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    change_config(folder, eos_token_id=None)
    with pytest.raises(ValueError, match="names no eos_token"):
        load(folder)
    change_config(folder, eos_token_id=[2, 64])
    with pytest.raises(ValueError, match="eos_token_id 64 is not a token"):
        load(folder)


def test_several_tokens_may_end_a_response(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2, 7]}))
    assert Pretrained(folder).vocabulary().stops == (2, 5, 7)


def test_a_chat_template_cannot_reach_out():
    templates = {
        "{{ ''.__class__.__mro__[1].__subclasses__() }}": "chat template refuses",
        "{{ raise_exception('no system turn') }}": "refuses the conversation: no system turn",
        "{% if %}": "chat template cannot be read",
    }
    for template, message in templates.items():
        hostile = dataclasses.replace(vocabulary(), chat_template=template)
        with pytest.raises(ValueError, match=message):
            hostile.render([])


def test_a_folder_that_holds_something_is_not_overwritten(whole, folder):
    _, config, params = whole
    with pytest.raises(ValueError, match="is not empty"):
        save_huggingface(folder, params, config, vocabulary())
    with pytest.raises(ValueError, match="does not exist"):
        Pretrained(folder / "nowhere")
