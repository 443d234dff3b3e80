"""A step against a slow or failing cloud: overlap changes nothing but the time, failures count."""

import dataclasses
import time
from contextlib import closing

import jax
import numpy as np
import pytest

from experiments.fake_cloud import solve
from offload_jax.cloud.fake import FakeCloud, running
from offload_jax.cloud.ledger import Ledger
from offload_jax.cloud.openai import OpenAICloud, OpenAIConfig
from offload_jax.cloud.protocol import BUDGET, Answer, CloudError
from offload_jax.device.params import init_params
from offload_jax.sampling.rollout import step_key
from offload_jax.sampling.sampler import Sampler
from offload_jax.sharding import MeshConfig, make_mesh
from offload_jax.training.post_training import (
    init_post_training,
    post_training_stage,
    sample_and_judge,
)

CALL = "</think> <unknown> I need external assistance </unknown>"


class Slow:
    """A cloud that takes its time and is always right, or always fails."""

    def __init__(self, task, seconds=0.0, failure=None):
        self.task, self.seconds, self.failure, self.asked = task, seconds, failure, []

    def answer(self, prompts):
        time.sleep(self.seconds)
        self.asked.append(len(prompts))
        if self.failure:
            return [Answer(None, self.failure) for _ in prompts]
        return [Answer(f"<answer> {self.task.right_answer(p)} </answer>") for p in prompts]


@pytest.fixture(scope="module")
def setting(tiny, tmp_path_factory):
    experiment = tiny.tiny_experiment()
    filter = dataclasses.replace(experiment.learning.filter, enabled=True)
    learning = dataclasses.replace(experiment.learning, filter=filter)
    experiment = dataclasses.replace(experiment, learning=learning)
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    folder = tmp_path_factory.mktemp("data")
    task = tiny.tiny_task(experiment, folder)
    sampler = Sampler(task, experiment.device, experiment.sampling, mesh)
    params = init_params(experiment.device, jax.random.key(0))
    # Every third response calls, whatever was sampled: a random policy never would.
    parse = task.parse

    def calling(text):
        return parse(CALL) if len(text) % 3 == 0 else parse(text)

    task.parse = calling
    return experiment, sampler, params, mesh


def test_parts_change_nothing_and_hide_the_clouds_time(setting):
    _, sampler, params, mesh = setting
    prompts = sampler.task.prompts("train")[:8]
    found = []
    with jax.set_mesh(mesh):
        for parts in (1, 2, 4):
            cloud = Slow(sampler.task, 0.05)
            found.append(sample_and_judge(params, sampler, cloud, prompts, step_key(0, 3), parts))
            assert len(cloud.asked) <= parts and sum(cloud.asked) > 0
    (batch, rollout, judgement, _), *others = found
    for other in others:
        for ours, theirs in zip(jax.tree.leaves((batch, rollout)), jax.tree.leaves(other[:2]),
                                strict=True):  # fmt: skip
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
        np.testing.assert_array_equal(rollout.tokens, other[1].tokens)
        for name in ("device_correct", "called", "formatted", "cloud_correct", "cloud_tokens"):
            np.testing.assert_array_equal(getattr(judgement, name), getattr(other[2], name))
        assert judgement.answers == other[2].answers


def stage_with(setting, cloud):
    experiment, sampler, params, mesh = setting
    stage = post_training_stage(experiment, sampler, cloud, "gapg", lambda: None)
    return stage, init_post_training(experiment, params, mesh)


def test_a_cloud_that_is_down_teaches_no_calls_and_is_counted(setting):
    with jax.set_mesh(setting[3]):
        stage, state = stage_with(setting, Slow(setting[1].task, failure="timeout"))
        _, metrics = stage.step(state, 0)
        assert metrics["cloud/failed"] == metrics["cloud/asked"] > 0
        assert metrics["d2"] == 0 and metrics["reward"] == metrics["accuracy"]
        stage, state = stage_with(setting, Slow(setting[1].task, 0.2))
        _, metrics = stage.step(state, 0)
        assert metrics["cloud/failed"] == 0 and metrics["reward"] > metrics["accuracy"]
        assert metrics["cloud/seconds"] >= 0.2 and metrics["seconds/judge"] >= 0.15
        assert metrics["seconds/sample"] > 0


def test_failures_are_not_counted_as_wrong_answers(setting):
    class Half(Slow):
        def answer(self, prompts):
            answers = super().answer(prompts)
            return [Answer(None, "timeout") if i % 2 else a for i, a in enumerate(answers)]

    with jax.set_mesh(setting[3]):
        stage, state = stage_with(setting, Half(setting[1].task))
        state, metrics = stage.step(state, 0)
        assert metrics["cloud_accuracy"] == 1.0
        assert 0 < metrics["cloud/failed"] < metrics["cloud/asked"]
        stage, _ = stage_with(setting, Slow(setting[1].task, failure="timeout"))
        assert stage.step(state, 1)[1]["cloud_accuracy"] is None  # nothing was answered


@pytest.mark.slow  # it compiles another batch; tests/cloud has the same of the client alone
def test_sixty_four_calls_of_a_second_add_two_and_a_half_to_a_step(tiny, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    experiment = tiny.tiny_experiment()
    sizes = dataclasses.replace(experiment.learning.batch, prompts=64, micro_prompts=64)
    experiment = dataclasses.replace(
        experiment,
        task=dataclasses.replace(experiment.task, train=64),
        learning=dataclasses.replace(experiment.learning, batch=sizes),
    )
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    task = tiny.tiny_task(experiment, tmp_path / "data")
    parse = task.parse
    task.parse = lambda text: parse(text if text.startswith("cloud: ") else CALL)
    sampler = Sampler(task, experiment.device, experiment.sampling, mesh)
    fake = FakeCloud(lambda question: f"cloud: {solve(question)}")
    with jax.set_mesh(mesh), running(fake) as url:
        state = init_post_training(experiment, init_params(experiment.device, jax.random.key(0)),
                                   mesh)  # fmt: skip
        for seconds in (0.0, 1.0):  # the first compiles
            fake.seconds = seconds
            config = OpenAIConfig("openai", "m", url, concurrency=32, check=False)
            with closing(OpenAICloud(config, Ledger(tmp_path / str(seconds), "run"))) as cloud:
                stage = post_training_stage(experiment, sampler, cloud, "gapg", lambda: None)
                state, metrics = stage.step(state, 0)
            assert metrics["cloud/asked"] == 64 and metrics["cloud/failed"] == 0
            assert metrics["cloud_accuracy"] == metrics["call_ratio"] == 1.0
    assert len(fake.requests) == 2 * 64 and fake.most_at_once <= 32
    # The wait for the cloud stands apart from the computing.
    assert metrics["cloud/seconds"] >= 2.0 and 1.9 <= metrics["seconds/judge"] < 2.5
    assert metrics["seconds/sample"] + metrics["seconds/update"] < 1.0


def test_a_spent_budget_ends_the_run(setting):
    with jax.set_mesh(setting[3]):
        stage, state = stage_with(setting, Slow(setting[1].task, failure=BUDGET))
        with pytest.raises(CloudError, match=r"budget is spent \(config\.cloud\.budget\)"):
            stage.step(state, 0)
