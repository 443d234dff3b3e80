"""Parity with `transformers`: logits, greedy text and the way back, per family, random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.device import model
from offload_jax.device.config import DeviceConfig
from offload_jax.pretrained.checkpoint import Pretrained
from offload_jax.pretrained.huggingface import save_huggingface
from offload_jax.sampling.rollout import PromptBatch, SamplingConfig, rollout
from offload_jax.settings import parse
from tests.pretrained.folders import SHAPE, write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama3": (
        "Llama",
        {"rope_theta": 5e5, "rope_scaling": LLAMA3, "tie_word_embeddings": True, "head_dim": 10},
    ),
    "llama_bias": ("Llama", {"attention_bias": True, "num_key_value_heads": 1, "head_dim": 6}),
    "smollm2": ("Llama", {"rope_theta": 1e5, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen2_untied": ("Qwen2", {"num_key_value_heads": 6, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"head_dim": 14, "rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen3_bias": ("Qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": False}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """A random `transformers` model on disk, and in torch."""
    name, changes = FAMILIES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **changes})
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for key, x in theirs.named_parameters():
            # Away from what initialisation leaves at 0 and 1, and far enough for decided argmaxes.
            noise = torch.randn_like(x)
            x.copy_(1 + 0.3 * noise if "norm" in key else 0.3 * noise)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    write_tokenizer(folder)
    return folder, theirs


def load(folder):
    pretrained = Pretrained(folder)
    config = parse(DeviceConfig, pretrained.shape())
    return pretrained, config, pretrained.params(config, jax.random.key(0))


def batch(vocabulary=64, rows=3, longest=11, seed=0):
    """Prompts of different lengths."""
    rng = np.random.default_rng(seed)
    lengths = np.array([longest, 1, 6][:rows], np.int32)
    tokens = rng.integers(3, vocabulary, (rows, longest)).astype(np.int32)
    tokens[np.arange(longest) >= lengths[:, None]] = 0
    return PromptBatch(np.arange(rows, dtype=np.int32), tokens, lengths)


def torch_logits(theirs, tokens):
    with torch.no_grad():
        return theirs(torch.tensor(np.asarray(tokens)[None])).logits[0].numpy()


def test_logits_are_those_of_transformers(pair):
    folder, theirs = pair
    _, config, params = load(folder)
    prompts, T = batch(), 20
    responses = np.random.default_rng(1).integers(3, 64, (3, 2, T)).astype(np.int32)
    hidden = model.forward(params, config, prompts.tokens, prompts.lengths, jnp.asarray(responses))
    ours = np.asarray(model.logits(params, config, hidden))
    for p, length in enumerate(prompts.lengths):
        for g in range(2):
            whole = np.concatenate([prompts.tokens[p, :length], responses[p, g]])
            expected = torch_logits(theirs, whole)[length - 1 : -1]
            np.testing.assert_allclose(ours[p, g], expected, atol=1e-4, rtol=0)


def test_greedy_continuations_are_those_of_transformers(pair):
    folder, theirs = pair
    _, config, params = load(folder)
    prompts, T = batch(), 64
    sampling = SamplingConfig(1, 11, T, temperature=0.0, cache_tokens=64)
    ours = rollout(
        params, prompts, jax.random.key(0), config=config, sampling=sampling, stops=(63,), pad=0
    )
    for p, length in enumerate(prompts.lengths):
        prompt = torch.tensor(prompts.tokens[p, :length][None].astype(np.int64))
        expected = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=T, do_sample=False,
            eos_token_id=63, pad_token_id=0,
        )[0, length:].tolist()  # fmt: skip
        assert np.asarray(ours.tokens)[p, 0, : ours.lengths[p, 0]].tolist() == expected


def test_decoding_gives_the_whole_forward_pass_at_every_position(pair):
    folder, _ = pair
    _, config, params = load(folder)
    prompts, T = batch(), 24
    sampling = SamplingConfig(2, 11, T, cache_tokens=8, shrink=1.0)
    sampled = rollout(
        params, prompts, jax.random.key(1), config=config, sampling=sampling, stops=(63,), pad=0
    )
    hidden = model.forward(params, config, prompts.tokens, prompts.lengths, sampled.tokens)
    again = model.token_logprobs(params, config, hidden, sampled.tokens)
    real = np.arange(T) < np.asarray(sampled.lengths)[..., None]
    np.testing.assert_allclose(
        np.where(real, again, 0), np.asarray(sampled.logprobs), atol=1e-4, rtol=0
    )


def test_what_we_write_is_what_transformers_reads(pair, tmp_path):
    folder, theirs = pair
    pretrained, config, params = load(folder)
    out = tmp_path / "out"
    save_huggingface(out, params, config, pretrained.vocabulary(), shard_bytes=20_000)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert json.loads((out / "config.json").read_text())["model_type"] in (
        "llama",
        "qwen2",
        "qwen3",
    )
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens = batch().tokens[0]
    np.testing.assert_array_equal(torch_logits(again, tokens), torch_logits(theirs, tokens))
    # AutoTokenizer would insist on BPE for Qwen, which the small tokenizer of the tests is not.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(out)
    talk = [{"role": "user", "content": "to be or not"}]
    ours = pretrained.vocabulary()
    assert tokenizer.apply_chat_template(
        talk, tokenize=False, add_generation_prompt=True
    ) == ours.render(talk)
    assert tokenizer.encode("to be", add_special_tokens=False) == ours.encode("to be")
    assert tokenizer.eos_token_id in ours.stops
