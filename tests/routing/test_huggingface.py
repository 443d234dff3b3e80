"""Parity with `transformers` for random weights; without torch, only the refusals."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from offload_jax.routing import deberta
from offload_jax.routing.deberta import DebertaConfig, bucketed
from offload_jax.routing.huggingface import huggingface_config, load_huggingface

encode = jax.jit(deberta.encode, static_argnames="config")
classify = jax.jit(deberta.classify, static_argnames="config")

VALUES = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 21,
    "intermediate_size": 37,
    "max_position_embeddings": 30,
    "relative_attention": True,
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "type_vocab_size": 0,
    "vocab_size": 50,
}
B, S = 5, 45  # longer than max_position_embeddings, much longer than the buckets
TOKENS = np.random.default_rng(0).integers(0, 50, (B, S)).astype(np.int32)
LENGTHS = np.array([S, 1, 2, 17, 40], np.int32)
REAL = np.arange(S) < LENGTHS[:, None]


def torch_model(cls, folder, **changes):
    """A torch model with large random weights, saved to `folder`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    values = {**VALUES, **changes}
    config = transformers.DebertaV2Config(
        **{key: x for key, x in values.items() if key != "model_type"}
    )
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))  # norms and biases are not left at 1 and 0
    model.save_pretrained(folder)
    return model


def run_torch(model):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(
            torch.tensor(TOKENS).long(),
            attention_mask=torch.tensor(REAL).long(),
            output_hidden_states=True,
        )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position_buckets": 13, "max_relative_positions": 25, "num_attention_heads": 7},
        {"position_buckets": 64, "max_position_embeddings": 90, "num_hidden_layers": 1},
        {"pos_att_type": ["c2p", "p2c"], "layer_norm_eps": 1e-3, "num_attention_heads": 1},
    ],
)
def test_hidden_states_are_those_of_torch(tmp_path, changes):
    model = torch_model("DebertaV2Model", tmp_path, **changes)
    config = huggingface_config(tmp_path)
    params = load_huggingface(tmp_path, config, jax.random.key(0))
    ours = np.asarray(encode(params, config, TOKENS, LENGTHS))
    theirs = run_torch(model).last_hidden_state.numpy()
    assert np.abs(theirs[REAL]).max() > 1  # there is something to differ by
    assert np.abs(ours - theirs)[REAL].max() <= 1e-4


@pytest.mark.parametrize("labels", [1, 2])
def test_the_logit_is_that_of_torchs_classifier(tmp_path, labels):
    model = torch_model("DebertaV2ForSequenceClassification", tmp_path, num_labels=labels)
    config = huggingface_config(tmp_path)
    params = load_huggingface(tmp_path, config, jax.random.key(0))
    ours = np.asarray(classify(params, config, TOKENS, LENGTHS))
    logits = run_torch(model).logits.numpy()
    theirs = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
    assert theirs.std() > 0.01
    assert np.abs(ours - theirs).max() <= 1e-4


def test_more_than_two_labels_are_refused(tmp_path):
    torch_model("DebertaV2ForSequenceClassification", tmp_path, num_labels=3)
    with pytest.raises(ValueError, match=r"model\.safetensors: classifier\.weight has 3 labels"):
        load_huggingface(tmp_path, huggingface_config(tmp_path), jax.random.key(0))


@pytest.mark.parametrize(("buckets", "reach"), [(256, 512), (32, 256), (6, 30), (7, 13), (2, 9)])
def test_buckets_are_those_of_torch(buckets, reach):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2")
    distances = np.arange(-2 * reach, 2 * reach)
    theirs = module.make_log_bucket_position(torch.tensor(distances), buckets, reach).long()
    np.testing.assert_array_equal(bucketed(distances, buckets, reach), theirs.numpy())


def write(folder, tensors=None, **changes):
    """A folder with config.json and, if given, tensors."""
    (folder / "config.json").write_text(json.dumps({**VALUES, **changes}))
    if tensors is not None:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def encoder_tensors():
    """Tensors of a one-layer encoder of width 21, as `DebertaV2Model` names them."""
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (50, 21),
        "encoder.rel_embeddings.weight": (12, 21),
    }
    for name in ("embeddings.LayerNorm", "encoder.LayerNorm"):
        shapes |= {f"{name}.weight": (21,), f"{name}.bias": (21,)}
    layer = "encoder.layer.0."
    for name in ("query_proj", "key_proj", "value_proj"):
        shapes |= {f"{layer}attention.self.{name}.weight": (21, 21)}
        shapes |= {f"{layer}attention.self.{name}.bias": (21,)}
    for name, out, into in (
        ("attention.output", 21, 21),
        ("intermediate", 37, 21),
        ("output", 21, 37),
    ):
        shapes |= {f"{layer}{name}.dense.weight": (out, into), f"{layer}{name}.dense.bias": (out,)}
    for name in ("attention.output", "output"):
        shapes |= {f"{layer}{name}.LayerNorm.{part}": (21,) for part in ("weight", "bias")}
    return {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}


def test_an_encoder_without_a_classifier_gets_a_random_head_and_other_heads_are_left_out(tmp_path):
    tensors = encoder_tensors()
    tensors["lm_predictions.lm_head.bias"] = np.zeros(50, np.float32)
    write(tmp_path, tensors, num_hidden_layers=1)
    config = huggingface_config(tmp_path, dropout=0.2)
    assert config == DebertaConfig(50, 21, 1, 3, 37, buckets=6, max_distance=30, dropout=0.2)
    first, second = (load_huggingface(tmp_path, config, jax.random.key(seed)) for seed in (0, 1))
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(first))
    np.testing.assert_array_equal(first["layers"]["up"]["kernel"], second["layers"]["up"]["kernel"])
    assert not np.array_equal(first["head"]["kernel"], second["head"]["kernel"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "bert"),
        ("relative_attention", False),
        ("share_att_key", False),
        ("norm_rel_ebd", "none"),
        ("position_biased_input", True),
        ("pos_att_type", "c2p"),
        ("hidden_act", "relu"),
        ("type_vocab_size", 2),
        ("conv_kernel_size", 3),
        ("embedding_size", 16),
        ("attention_head_size", 8),
        ("position_buckets", -1),
        ("num_hidden_layers", "3"),
        ("hidden_size", True),
    ],
)
def test_what_is_not_implemented_is_refused_by_file_and_key(tmp_path, key, value):
    write(tmp_path, **{key: value})
    ours = {"position_buckets": "buckets"}.get(key, key)
    with pytest.raises(ValueError, match=rf"config\.json: {ours} "):
        huggingface_config(tmp_path)


def test_missing_broken_and_foreign_weights_are_refused_in_words(tmp_path):
    def load():
        return load_huggingface(tmp_path, huggingface_config(tmp_path), jax.random.key(0))

    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load()
    write(tmp_path, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        load()
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        load()
    whole = encoder_tensors()
    for change, names in (
        ({"encoder.conv.conv.weight": np.zeros(3, np.float32)}, r"not implemented: encoder\.conv"),
        ({"encoder.rel_embeddings.weight": np.zeros((9, 21), np.float32)}, r"\(9, 21\)"),
    ):
        write(tmp_path, {**whole, **change}, num_hidden_layers=1)
        with pytest.raises(ValueError, match=names):
            load()
    write(tmp_path, whole, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"lacks the tensor encoder\.layer\.1\."):
        load()
    other = DebertaConfig(50, 21, 1, 3, 37, buckets=6, max_distance=30)
    with pytest.raises(ValueError, match=r"layers is 1, but .*config\.json has 2"):
        load_huggingface(tmp_path, other, jax.random.key(0))
