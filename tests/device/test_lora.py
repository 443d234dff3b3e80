"""Adapters: what they compute, what they leave alone, and what a checkpoint of them holds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.device import lora, model
from offload_jax.device.config import MATRICES, DeviceConfig, LoraConfig
from offload_jax.device.params import count_params, init_params
from offload_jax.learning.optimizer import OptimizerConfig, make_optimizer
from offload_jax.learning.update import WeightedResponses, gradient_of, init_state, update
from offload_jax.pretrained.checkpoint import Pretrained
from offload_jax.sampling.rollout import PromptBatch, SamplingConfig, rollout
from offload_jax.settings import parse
from offload_jax.sharding import MeshConfig, make_mesh
from offload_jax.training.checkpoints import Checkpoints, load_policy
from tests.pretrained.folders import vocabulary, write_checkpoint

PLAIN = DeviceConfig(64, 16, 2, 4, 2, 6, 20)
CONFIG = dataclasses.replace(PLAIN, lora=LoraConfig(3, 6.0))
PROMPTS = PromptBatch(
    np.arange(2, dtype=np.int32), np.arange(3, 13, dtype=np.int32).reshape(2, 5), np.array([5, 3])
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 64, (2, 2, 7)))


def stirred(config=CONFIG):
    """Weights whose adapters do something: `b` begins at zero."""
    params = init_params(config, jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 20))
    for pair in params["adapters"].values():
        pair["b"] = 0.2 * jax.random.normal(next(keys), pair["b"].shape)
    return params


def hidden(params, config):
    return model.forward(params, config, PROMPTS.tokens, PROMPTS.lengths, TOKENS)


def batch():
    weights = jnp.array([[0.5, -0.3], [0.2, 0.1]])
    return WeightedResponses(PROMPTS, TOKENS, jnp.full((2, 2), 7), weights)


def test_fresh_adapters_change_nothing_and_are_not_counted():
    params = init_params(CONFIG, jax.random.key(1))
    without = {name: x for name, x in params.items() if name != "adapters"}
    # Two programs, which may round differently.
    np.testing.assert_allclose(hidden(params, CONFIG), hidden(without, PLAIN), atol=2e-6)
    assert count_params(CONFIG) == count_params(PLAIN)


def test_merged_weights_are_the_same_policy():
    params = stirred()
    merged = lora.merge(params, CONFIG)
    assert "adapters" not in merged
    np.testing.assert_allclose(hidden(params, CONFIG), hidden(merged, PLAIN), atol=2e-5)
    query = np.asarray(params["layers"]["query"][1]).reshape(16, -1)
    a, b = (np.asarray(params["adapters"]["query"][part][1]) for part in "ab")
    expected = query + 6.0 / 3 * a @ b.reshape(3, -1)
    np.testing.assert_allclose(merged["layers"]["query"][1].reshape(16, -1), expected, atol=1e-6)


def test_the_sampler_uses_them():
    params, sampling = stirred(), SamplingConfig(2, 5, 8, cache_tokens=8, shrink=1.0)
    options = {"sampling": sampling, "stops": (1,), "pad": 0}
    sampled = rollout(params, PROMPTS, jax.random.key(0), config=CONFIG, **options)
    states = model.forward(params, CONFIG, PROMPTS.tokens, PROMPTS.lengths, sampled.tokens)
    again = model.token_logprobs(params, CONFIG, states, sampled.tokens)
    real = np.arange(8) < np.asarray(sampled.lengths)[..., None]
    np.testing.assert_allclose(np.where(real, again, 0), sampled.logprobs, atol=2e-5)


def test_their_gradient_is_the_matrixs_gradient_through_the_product():
    params = stirred()
    merged = lora.merge(params, CONFIG)
    gradient = jax.jit(gradient_of, static_argnames=("config", "micro_prompts"))
    ours, _ = gradient(params, batch(), config=CONFIG, micro_prompts=1)
    whole, _ = gradient(merged, batch(), config=PLAIN, micro_prompts=1)
    assert set(ours) == {"adapters"}
    for name, contracted in MATRICES.items():
        a, b = params["adapters"][name]["a"], params["adapters"][name]["b"]
        inputs = math.prod(a.shape[1 : 1 + contracted])
        a, b = a.reshape(2, inputs, 3), b.reshape(2, 3, -1)
        matrix = whole["layers"][name].reshape(2, inputs, -1)
        of_a = 2.0 * matrix @ b.swapaxes(1, 2)
        of_b = 2.0 * a.swapaxes(1, 2) @ matrix
        mine = ours["adapters"][name]
        np.testing.assert_allclose(mine["a"].reshape(of_a.shape), of_a, atol=1e-4)
        np.testing.assert_allclose(mine["b"].reshape(of_b.shape), of_b, atol=1e-4)


def test_an_update_moves_adapters_alone_and_only_the_targets_have_one():
    config = dataclasses.replace(PLAIN, lora=LoraConfig(2, 2.0, ("query", "down")))
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    params = init_params(config, jax.random.key(1))
    assert set(params["adapters"]) == {"query", "down"}
    before = jax.tree.map(np.array, params)
    optimizer = make_optimizer(OptimizerConfig(rate=1e-2), 5)
    state = init_state(params, optimizer, config, mesh)
    for _ in range(2):
        state, _ = update(state, batch(), config=config, optimizer=optimizer, micro_prompts=2)
    for name in ("embedding", "layers", "final_norm"):
        jax.tree.map(np.testing.assert_array_equal, state.params[name], before[name])
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), state.params["adapters"],
                         before["adapters"])  # fmt: skip
    assert all(jax.tree.leaves(moved))
    trained = sum(x.size for x in jax.tree.leaves(params["adapters"]))
    held = sum(x.size for x in jax.tree.leaves(state.optimizer) if x.size > 1)
    assert held == 2 * trained  # AdamW's moments of nothing else


def test_a_checkpoint_holds_adapters_and_finds_the_rest(tmp_path):
    write_checkpoint(tmp_path / "base")
    pretrained = Pretrained(tmp_path / "base")
    settings = {"lora": {"rank": 2, "alpha": 4.0}, "pretrained": str(tmp_path / "base")}
    config = parse(DeviceConfig, {**pretrained.shape(), **settings})
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    params = pretrained.params(config, jax.random.key(4), mesh)
    params["adapters"]["up"]["b"] += 0.5
    state = init_state(params, make_optimizer(OptimizerConfig(rate=1e-2), 5), config, mesh)
    with Checkpoints(tmp_path / "stage") as checkpoints:
        checkpoints.save(state, config, vocabulary())
        again = checkpoints.restore(state)
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    weights = sum(file.stat().st_size for file in (tmp_path / "stage").rglob("d/*"))
    assert weights < 0.8 * (tmp_path / "base" / "model.safetensors").stat().st_size
    found, shape, words = load_policy(tmp_path / "stage")
    assert shape == config and words.chat_template == vocabulary().chat_template
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(state.params))


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint of a stage"):
        load_policy(tmp_path)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        load_policy(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rank": 0}, "rank must be at least 1"), ({"alpha": 0.0}, "alpha must be positive"),
     ({"targets": ("quary",)}, "'quary' must be one of query"),
     ({"targets": ("up", "up")}, "'up' must be one of")],
)  # fmt: skip
def test_impossible_adapters_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**{"rank": 2, "alpha": 1.0, **change})
