"""What the device answers when its call is refused: its own work, then an answer in place of it.

The response is cut at the decision point, before the call; the opening of an answer is put there,
and the device goes on greedily. So a call can be taken back, by a budget or where no cloud is.
"""

import dataclasses
from collections.abc import Sequence

import jax

from offload_jax.device.params import Params
from offload_jax.evaluation.decision import decision_point
from offload_jax.evaluation.records import Record
from offload_jax.processes import fetch
from offload_jax.sampling.rollout import SamplingConfig
from offload_jax.sampling.sampler import Sampler
from offload_jax.sampling.text import decode_responses, extend_prompts
from offload_jax.sharding import place
from offload_jax.tasks.task import Prompt


def with_fallbacks(
    params: Params,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    records: Sequence[Record],
    batch: int,
) -> list[Record]:
    """The same records, those that call with `fallback` and `fallback_correct`.

    Args:
        params: the weights of the policy whose records they are.
        sampler: the sampler that made them.
        prompts: of the records, in the same order.
        records: to complete.
        batch: responses continued at once; the last batch is filled up.
    """
    records = list(records)
    calling = [i for i, record in enumerate(records) if record.called]
    for first in range(0, len(calling), batch):
        rows = calling[first : first + batch]
        filled = rows + [rows[-1]] * (batch - len(rows))
        texts = _continued(params, sampler, [prompts[i] for i in filled], records, filled)
        for i, text in zip(rows, texts, strict=False):
            answer = sampler.task.parse(text).answer
            right = answer is not None and sampler.task.verify(answer, prompts[i])
            records[i] = dataclasses.replace(records[i], fallback=answer, fallback_correct=right)
    return records


def _continued(
    params: Params,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    records: Sequence[Record],
    rows: Sequence[int],
) -> list[str]:
    """The answers' texts, opening included."""
    _, opening = sampler.task.openings
    opened = sampler.vocabulary.encode(opening)
    works = [_work(sampler, records[i]) + opened for i in rows]
    room = sampler.sampling.response_tokens + len(opened)
    batch = extend_prompts(fetch(sampler.encode(prompts)), works, room, sampler.vocabulary.pad)
    # At temperature 0 no key is read.
    rollout = _short(sampler.greedy()).respond(
        params, place(sampler.mesh, batch, "prompts"), jax.random.key(0)
    )
    return [opening + text for (text,) in decode_responses(sampler.tokenizer, fetch(rollout))]


def _short(sampler: Sampler) -> Sampler:
    """An answer without work needs few tokens."""
    few = fallback_tokens(sampler.sampling)
    sampling = dataclasses.replace(sampler.sampling, response_tokens=few)
    return dataclasses.replace(sampler, sampling=sampling)


def fallback_tokens(sampling: SamplingConfig) -> int:
    """The most tokens of an answer that stands in place of a call, its opening not counted."""
    return min(sampling.response_tokens, 64)


def _work(sampler: Sampler, record: Record) -> list[int]:
    """The response's tokens before its call."""
    at = sampler.task.parse(record.response).at
    return record.response_tokens[: decision_point(sampler.vocabulary, record.response_tokens, at)]
