"""P(call) at the decision point, against the policy's own next-token probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.device import model
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import init_params
from offload_jax.evaluation.decision import call_probabilities, decision_point
from offload_jax.sampling.text import encode_prompts
from offload_jax.tasks import make_task

TASK = make_task("countdown", "unused")
DEVICE = DeviceConfig(160, 16, 2, 2, 1, 8, 16)
T = 12
RESPONSES = [
    "3 + 4 = 7 </think> <answer> 3 + 4 </answer> <eos>",
    "3 </think> <unknown> I need external assistance </unknown> <eos>",
    "3 + 4 = 7 , 3 + 4 = 7 , 3 +",  # cut off
    "3 + 4 </think> <eos>",
]
BEFORE = [6, 2, 12, 4]  # tokens before the decision


def ids(text):
    return TASK.vocabulary.tokenizer.encode(text).ids


def test_the_decision_point_is_where_answer_or_call_begins():
    for text, before in zip(RESPONSES, BEFORE, strict=True):
        at = TASK.parse(text.removesuffix(" <eos>")).at
        assert decision_point(TASK.vocabulary, ids(text)[:T], at) == before


def test_it_is_the_policys_own_preference_for_calling_over_answering():
    params = init_params(DEVICE, jax.random.key(0))
    prompts = encode_prompts(TASK.vocabulary, range(4), ["<bos> 3 4 = 7 <think>"] * 4, 8)
    tokens, lengths = np.zeros((4, 1, T), np.int32), np.zeros((4, 1), np.int32)
    for i, text in enumerate(RESPONSES):
        row = ids(text)[:T]
        tokens[i, 0, : len(row)], lengths[i] = row, len(row)
    parsed = [TASK.parse(text.removesuffix(" <eos>")) for text in RESPONSES]
    ours = call_probabilities(params, DEVICE, TASK, prompts, tokens, lengths, parsed)
    call, answer = (TASK.vocabulary.tokenizer.token_to_id(text) for text in TASK.openings)
    for i, before in enumerate(BEFORE):
        sequence = np.concatenate([tokens[i, 0, :before], [0]])[None, None]
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], prompts)
        hidden = model.forward(params, DEVICE, one.tokens, one.lengths, jnp.asarray(sequence))
        scores = model.logits(params, DEVICE, hidden[0, 0, before])
        expected = jax.nn.softmax(scores[jnp.array([call, answer])])[0]
        assert ours[i] == pytest.approx(float(expected), abs=1e-5)
    assert len(set(ours.round(6))) > 1
