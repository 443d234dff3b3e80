import dataclasses

import jax
import numpy as np
import pytest

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import init_params
from offload_jax.learning.optimizer import OptimizerConfig
from offload_jax.routing import deberta, router
from offload_jax.routing.classifier import on_device
from offload_jax.routing.deberta import DebertaConfig
from offload_jax.routing.router import (
    Examples,
    RouterConfig,
    prompts_with_responses,
    router_scores,
    train_router,
)
from offload_jax.settings import parse
from offload_jax.sharding import MeshConfig, make_mesh

V, S = 12, 8
ENCODER = DebertaConfig(V, 16, 1, 2, 32, buckets=8, max_distance=16, dropout=0.1)
DECODER = DeviceConfig(
    vocabulary=V, width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp=32
)  # fmt: skip
CONFIG = RouterConfig(
    OptimizerConfig(rate=5e-3, warmup_steps=10), deberta=ENCODER, batch=32, epochs=8, patience=8
)


def examples(n, seed):
    """The device is wrong where the token 3 stands in the row, padding aside: in about half."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (n, S)).astype(np.int32)
    lengths = rng.integers(4, S + 1, n).astype(np.int32)
    real = np.arange(S) < lengths[:, None]
    return Examples(tokens, lengths, ((tokens == 3) & real).any(axis=1))


TRAIN, VALIDATION, TEST = (examples(n, i) for i, n in enumerate((600, 100, 203)))


def begin(config):
    if config.deberta:
        return deberta.init_params(config.deberta, jax.random.key(0))
    return on_device(init_params(config.device, jax.random.key(0)), config.device)


def auroc(scores, positive):
    above = scores[positive][:, None] - scores[~positive]
    return np.mean((above > 0) + 0.5 * (above == 0))


@pytest.fixture(scope="module")
def trained():
    return train_router(begin(CONFIG), TRAIN, VALIDATION, CONFIG, seed=0)


def test_a_deberta_router_learns_what_can_be_learnt_and_high_scores_mean_wrong(trained):
    scores = router_scores(trained.params, CONFIG, TEST.tokens, TEST.lengths)
    assert auroc(scores, TEST.labels) > 0.95
    assert scores.min() >= 0 and scores.max() <= 1


def test_a_router_on_the_device_learns_it_too():
    config = dataclasses.replace(CONFIG, deberta=None, device=DECODER)
    start = begin(config)
    trained = train_router(start, TRAIN, VALIDATION, config, seed=0)
    scores = router_scores(trained.params, config, TEST.tokens, TEST.lengths)
    assert auroc(scores, TEST.labels) > 0.95
    # The device's own weights are neither changed nor taken away.
    jax.tree.map(np.testing.assert_array_equal, start, begin(config))


def test_scores_depend_neither_on_the_batch_nor_on_padding(trained):
    scores = router_scores(trained.params, CONFIG, TEST.tokens, TEST.lengths)
    order = np.arange(203)[:-78:-1]
    some = router_scores(trained.params, CONFIG, TEST.tokens[order], TEST.lengths[order])
    np.testing.assert_allclose(some, scores[order], atol=1e-6)
    real = np.arange(S) < TEST.lengths[:, None]
    padded = np.pad(np.where(real, TEST.tokens, 3), ((0, 0), (0, 3)), constant_values=3)
    longer = router_scores(trained.params, CONFIG, padded, TEST.lengths)
    np.testing.assert_allclose(longer, scores, atol=1e-5)
    assert router_scores(trained.params, CONFIG, TEST.tokens[:0], TEST.lengths[:0]).shape == (0,)


def test_the_best_epoch_is_kept_and_training_stops_after_the_patience():
    config = dataclasses.replace(CONFIG, patience=2)
    noise = np.random.default_rng(5).random(600) < 0.5  # nothing to learn: soon it overfits
    train = TRAIN.replace(labels=noise)
    trained = train_router(begin(config), train, VALIDATION, config, seed=0)
    losses = [epoch.validation_loss for epoch in trained.history]
    assert trained.best == np.argmin(losses)
    assert len(losses) == trained.best + 1 + 2 < config.epochs
    scores = router_scores(trained.params, config, VALIDATION.tokens, VALIDATION.lengths)
    chance = np.where(VALIDATION.labels, scores, 1 - scores)
    assert -np.log(chance).mean() == pytest.approx(min(losses), abs=1e-6)


def test_training_is_a_function_of_the_seed_and_compiles_once_for_all_seeds_and_epochs(trained):
    programs = router._epoch._cache_size()
    again = train_router(begin(CONFIG), TRAIN, VALIDATION, CONFIG, seed=0)
    other = train_router(begin(CONFIG), TRAIN, VALIDATION, CONFIG, seed=1)
    assert again.history == trained.history
    jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
    assert other.history != trained.history
    assert router._epoch._cache_size() == programs


def test_a_mesh_changes_nothing_but_rounding(trained):
    with jax.set_mesh(make_mesh(MeshConfig(data=2), jax.devices()[:2])):
        spread = train_router(begin(CONFIG), TRAIN, VALIDATION, CONFIG, seed=0)
        scores = router_scores(trained.params, CONFIG, TEST.tokens, TEST.lengths)
    for a, b in zip(spread.history[:2], trained.history, strict=False):
        assert dataclasses.astuple(a) == pytest.approx(dataclasses.astuple(b), abs=1e-3)
    alone = router_scores(trained.params, CONFIG, TEST.tokens, TEST.lengths)
    np.testing.assert_allclose(scores, alone, atol=1e-5)


def test_a_response_stands_right_behind_its_prompt():
    prompts = np.array([[5, 6, 0], [7, 0, 0]])
    responses = np.array([[1, 2], [3, 9]])
    tokens, lengths = prompts_with_responses(prompts, np.array([2, 1]), responses, np.array([2, 1]))
    assert lengths.tolist() == [4, 2]
    assert tokens[0, :4].tolist() == [5, 6, 1, 2]
    assert tokens[1, :2].tolist() == [7, 3]
    assert tokens.shape == (2, 5)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"batch": 601}, "batch is 601, but there are 600"),
        ({"patience": 0}, "patience"),
        ({"deberta": None}, "either deberta or device"),
        ({"device": DECODER}, "either deberta or device"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(change, names):
    with pytest.raises(ValueError, match=names):
        config = dataclasses.replace(CONFIG, **change)
        train_router(begin(config), TRAIN, VALIDATION, config, seed=0)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"lengths": np.zeros(100, np.int32)}, "validation lengths .* 1 to 8"),
        ({"tokens": np.full((100, S), V)}, r"validation tokens .* vocabulary \(12\)"),
        ({"labels": np.ones(99, bool)}, "validation labels"),
    ],
)
def test_examples_that_do_not_fit_are_refused(change, names):
    with pytest.raises(ValueError, match=names):
        train_router(begin(CONFIG), TRAIN, VALIDATION.replace(**change), CONFIG, seed=0)


def test_a_loss_that_is_not_finite_ends_training_in_words(trained):
    start = jax.tree.map(lambda x: x * np.nan, begin(CONFIG))
    with pytest.raises(ValueError, match=r"optimizer\.rate is 0\.005: .* not finite in epoch 1"):
        train_router(start, TRAIN, VALIDATION, CONFIG, seed=0)


def test_settings_come_from_a_config_section_and_errors_name_its_path():
    section = dataclasses.asdict(CONFIG)
    assert parse(RouterConfig, section, "config.router") == CONFIG
    section["deberta"]["heads"] = 3
    with pytest.raises(ValueError, match=r"config\.router\.deberta: width \(16\)"):
        parse(RouterConfig, section, "config.router")
