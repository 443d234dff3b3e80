"""A checkpoint as the cloud: its greedy answers, each question once, whatever the batch."""

import jax
import pytest

from offload_jax.cloud.device import DeviceCloud, DeviceCloudConfig
from offload_jax.sharding import MeshConfig, make_mesh
from offload_jax.tasks.task import Prompt
from tests.pretrained.folders import vocabulary, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cloud") / "model"
    write_checkpoint(path)
    return path


def prompts(*words):
    return [Prompt(i, word, {}) for i, word in enumerate(words)]


def config(folder, **changes):
    sizes = {"prompt_tokens": 12, "response_tokens": 16, "batch": 4}
    return DeviceCloudConfig("device", str(folder), **{**sizes, **changes})


def test_each_question_has_one_answer_whatever_the_batch_and_the_mesh(folder):
    words = ["to be", "or", "not to be", "that is the question", "the", "to be"]
    found = []
    for data, batch in ((1, 4), (2, 1)):
        mesh = make_mesh(MeshConfig(data=data), jax.devices()[:data])
        with jax.set_mesh(mesh):
            cloud = DeviceCloud(config(folder, batch=batch), mesh)
            answers = cloud.answer(prompts(*words))
            assert answers[0].text == answers[5].text and not answers[0].cached
            assert cloud.answer(prompts("or"))[0].cached
        found.append([answer.text for answer in answers])
        assert all(1 <= answer.tokens <= 16 and answer.seconds > 0 for answer in answers)
        rendered = vocabulary().render([{"role": "user", "content": "to be"}])
        assert answers[0].prompt_tokens == len(vocabulary().encode(rendered))
    assert found[0] == found[1] and len(set(found[0])) > 1


def test_what_does_not_fit_is_named(folder):
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with pytest.raises(ValueError, match=r"response_tokens is 1012; the context of .* has 128"):
        DeviceCloud(config(folder, response_tokens=1000), mesh)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        DeviceCloud(config(folder / "nowhere"), mesh)
    with pytest.raises(ValueError, match=r"config\.cloud\.batch is 0"):
        config(folder, batch=0)
