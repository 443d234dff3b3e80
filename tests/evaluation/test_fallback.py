"""A call that is taken back: the answer is the policy's own, greedy, from the decision point."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.device import model
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import init_params
from offload_jax.evaluation import fallback
from offload_jax.evaluation.records import columns, read_records, without_calls, write_records
from offload_jax.sampling.rollout import SamplingConfig
from offload_jax.sampling.sampler import Sampler
from offload_jax.sharding import MeshConfig, make_mesh
from offload_jax.tasks import make_task
from offload_jax.tasks.countdown.task import make_prompt
from tests.evaluation.samples import record

TASK = make_task("countdown", "unused")
DEVICE = DeviceConfig(143, 16, 2, 2, 1, 8, 16)
PROMPTS = [make_prompt(i, (3, 4, 5 + i), 12) for i in range(8)]
CALL = "</think> <unknown> I need external assistance </unknown>"
WORKS = ["3 + 4 = 7", "3", "", "3 - 4 = 7 , 7 + 5 = 12"]


def called(i, work):
    text = f"{work} {CALL}".strip()
    ids = TASK.vocabulary.tokenizer.encode(f"{text} <eos>").ids
    changes = {"response": text, "response_tokens": ids, "device_tokens": len(ids)}
    return dataclasses.replace(record(i, "call"), **changes)


def records():
    calls = {2 * i: called(2 * i, work) for i, work in enumerate(WORKS)}
    return [calls.get(i, record(i, "right" if i % 4 == 1 else "wrong")) for i in range(8)]


@pytest.fixture
def sampler():
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        yield Sampler(TASK, DEVICE, SamplingConfig(4, 12, 24, cache_tokens=24, shrink=1.0), mesh)


def best_next(params, ids):
    """The most probable token after each of these, by one whole forward pass."""

    @jax.jit
    def best(row):
        hidden = model.forward(params, DEVICE, row[:, :1], jnp.ones(1, int), row[None, :, 1:])
        return jnp.argmax(model.logits(params, DEVICE, hidden[0, 0]), axis=-1)

    return best(jnp.array([[*ids, *[0] * (64 - len(ids))]]))[: len(ids)].tolist()


def test_it_goes_on_from_the_work_with_the_opening_of_an_answer(sampler):
    params = init_params(DEVICE, jax.random.key(3))
    rows = [0, 2, 4, 6]
    texts = fallback._continued(params, sampler, [PROMPTS[i] for i in rows], records(), rows)
    encode = lambda text: TASK.vocabulary.tokenizer.encode(text).ids  # noqa: E731
    for i, work, text in zip(rows, WORKS, texts, strict=True):
        assert text.startswith("<answer>")
        answer = encode(text.removeprefix("<answer>"))
        before = encode(f"{TASK.device_text(PROMPTS[i])} {work} </think> <answer>")
        following = best_next(params, before + answer)[len(before) - 1 :]
        assert following[: len(answer)] == answer
        stopped = following[len(answer)] == TASK.vocabulary.tokenizer.token_to_id("<eos>")
        assert stopped or len(answer) == sampler.sampling.response_tokens
    assert len(set(texts)) > 1


def test_only_calls_get_one_and_it_is_verified(sampler, monkeypatch):
    asked = []

    def answers(params, sampler, prompts, records, rows):
        asked.append(list(rows))
        return ["<answer> 3 + 4 + 5 </answer>" if p.id == 0 else "<answer> 4" for p in prompts]

    monkeypatch.setattr(fallback, "_continued", answers)
    before = records()
    after = fallback.with_fallbacks({}, sampler, PROMPTS, before, batch=3)
    assert asked == [[0, 2, 4], [6, 6, 6]]
    assert [r.fallback for r in after] == ["3 + 4 + 5"] + [None] * 7
    assert [r.fallback_correct for r in after] == [
        True,
        None,
        False,
        None,
        False,
        None,
        False,
        None,
    ]
    assert after[1::2] == before[1::2]


def test_a_device_without_calls_answers_by_its_fallbacks():
    rows = [record(0, "call", True, fallback=True), record(1, "call", True, fallback=False),
            record(2, "right", True), record(3, "wrong", True)]  # fmt: skip
    answering = without_calls(columns(rows))
    assert answering.device_correct.tolist() == [True, False, True, False]
    assert not answering.called.any()
    with pytest.raises(ValueError, match="not known of 1 prompts, such as 1"):
        without_calls(columns([rows[0], record(1, "call", True)]))


@pytest.mark.parametrize("change", [{"fallback": "3"}, {"fallback_correct": False}])
def test_a_record_that_answers_has_no_fallback(change):
    with pytest.raises(ValueError, match="did not call cannot have fallback"):
        dataclasses.replace(record(0, "right"), **change)
    with pytest.raises(ValueError, match="without a fallback"):
        dataclasses.replace(record(0, "call"), fallback_correct=True)


def test_records_keep_it(tmp_path):
    rows = [record(0, "call", True, fallback=True), record(1, "call", False)]
    write_records(tmp_path / "r.jsonl", rows)
    assert read_records(tmp_path / "r.jsonl") == rows
    assert np.isnan(columns(rows).agreement).all()
