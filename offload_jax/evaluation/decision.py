"""P(call) at the decision point: how near a response came to calling, or to answering instead.

The decision point is the token at which the response's answer or call begins (the end of a
response that has neither). There, by the policy's own log-probabilities,

    P(call) = sigma(log pi(opening of a call) - log pi(opening of an answer))

given the prompt and the response so far: one number per response that orders prompts by how much
the policy wants the cloud, so that one policy serves every budget.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from offload_jax.device import model
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params
from offload_jax.processes import fetch
from offload_jax.sampling.rollout import PromptBatch
from offload_jax.sampling.text import extend_prompts
from offload_jax.tasks.task import Parsed, Task
from offload_jax.vocabulary import Vocabulary


def call_probabilities(
    params: Params,
    config: DeviceConfig,
    task: Task,
    batch: PromptBatch,
    tokens: Int[Array, "P 1 T"],
    lengths: Int[Array, "P 1"],
    parsed: Sequence[Parsed],
) -> Float[np.ndarray, " P"]:
    """P(call) of one response per prompt.

    Args:
        params: the policy's weights.
        config: the shape of the device LLM.
        task: whose openings of a call and of an answer are compared.
        batch: the prompts.
        tokens: the responses.
        lengths: their lengths.
        parsed: what was found in them (`Parsed.at` is where the decision begins).
    """
    rows = np.asarray(tokens)[:, 0]
    ends = [
        decision_point(task.vocabulary, row[:n].tolist(), found.at)
        for row, n, found in zip(rows, np.asarray(lengths)[:, 0], parsed, strict=True)
    ]
    works = [row[:end].tolist() for row, end in zip(rows, ends, strict=True)]
    begun = extend_prompts(fetch(batch), works, rows.shape[1], task.vocabulary.pad)
    scores = _summed_logprobs(
        params, begun.tokens, begun.lengths, *opening_tokens(task), config=config
    )
    return preference(fetch(scores))


def opening_tokens(task: Task) -> tuple[Int[np.ndarray, "2 R"], Bool[np.ndarray, "2 R"]]:
    """The tokens of how a call and an answer begin, padded on the right, and which are real."""
    openings = [task.vocabulary.encode(text) for text in task.openings]
    room = max(map(len, openings))
    tokens, counted = np.zeros((2, room), np.int32), np.zeros((2, room), bool)
    for j, opening in enumerate(openings):
        tokens[j, : len(opening)], counted[j, : len(opening)] = opening, True
    return tokens, counted


def preference(scores: Float[np.ndarray, "*b 2"]) -> Float[np.ndarray, "*b"]:
    """P(call) from the log-probabilities of a call's and an answer's opening."""
    call, answer = np.moveaxis(np.asarray(scores, np.float64), -1, 0)
    return 1 / (1 + np.exp(np.clip(answer - call, -700, 700)))


def decision_point(vocabulary: Vocabulary, tokens: list[int], at: int | None) -> int:
    """How many of a response's tokens come before character `at` of its text; None: all of them.

    A stop token at the end does not count: nothing can be decided after it.
    """
    text = partial(vocabulary.tokenizer.decode, skip_special_tokens=False)
    if at is None:
        return len(tokens) - (len(tokens) > 0 and tokens[-1] in vocabulary.stops)
    low, high = 0, len(tokens)
    while low < high:  # the first token with which the text reaches beyond `at`
        middle = (low + high) // 2
        if len(text(tokens[: middle + 1])) > at:
            high = middle
        else:
            low = middle + 1
    return low


@partial(jax.jit, static_argnames="config")
def _summed_logprobs(params, tokens, lengths, openings, counted, *, config):
    """Log pi of both openings [2, room] after each row, computed as a group of two: [P, 2]."""
    openings = jnp.broadcast_to(openings, (tokens.shape[0], *openings.shape))
    hidden = model.forward(params, config, tokens, lengths, openings)
    logprobs = model.token_logprobs(params, config, hidden, openings)
    return jnp.where(counted, logprobs, 0.0).sum(axis=-1)
