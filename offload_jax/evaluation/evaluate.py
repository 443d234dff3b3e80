"""Runs a policy greedily over prompts and keeps a record of each."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from offload_jax.cloud.protocol import Cloud
from offload_jax.device.params import Params
from offload_jax.evaluation.decision import call_probabilities
from offload_jax.evaluation.fallback import with_fallbacks
from offload_jax.evaluation.records import Record
from offload_jax.evaluation.usage import UsageConfig
from offload_jax.judging import Judgement, judge
from offload_jax.processes import fetch
from offload_jax.sampling.sampler import Sampler
from offload_jax.sampling.text import decode_responses
from offload_jax.sharding import prompt_shards
from offload_jax.tasks.task import Prompt


def evaluate(
    params: Params,
    sampler: Sampler,
    cloud: Cloud,
    prompts: Sequence[Prompt],
    *,
    policy: str,
    seed: int,
    batch: int,
    usage: UsageConfig,
    ask_all: bool = False,
    scores: bool = True,
    fallbacks: bool = False,
    samples: int = 0,
) -> list[Record]:
    """One greedy response to each prompt, judged; one record each, in the prompts' order.

    Args:
        params: the policy's weights.
        sampler: the training sampler; its temperature and group size are replaced.
        cloud: asked for the prompts that call.
        prompts: what to ask.
        policy: the name under which the records go.
        seed: of the run, noted in the records; with `samples`, of those samples too.
        batch: prompts decoded at once; the last batch is filled up with its last prompt, so that
            one compiled program serves all.
        usage: what seconds and dollars are reckoned with.
        ask_all: ask the cloud for every prompt, as random offloading and cloud-only rows need.
        scores: compute P(call), at the price of one forward pass.
        fallbacks: let the responses that call answer as well (see `fallback`).
        samples: responses sampled besides for self-consistency, k; 0: none, and no `agreement`.
    """
    records = []
    for first in range(0, len(prompts), batch):
        real = list(prompts[first : first + batch])
        filled = real + [real[-1]] * (batch - len(real))
        encoded, rollout = sampler.greedy()(params, filled, jax.random.key(0))
        host = fetch(rollout)
        texts = decode_responses(sampler.tokenizer, host)
        parsed = [sampler.task.parse(text) for (text,) in texts]
        tokens, lengths = host.tokens[:, 0], host.lengths[:, 0]
        p_call = agreements = [None] * batch
        if scores:
            p_call = call_probabilities(
                params, sampler.device, sampler.task, encoded, host.tokens, host.lengths, parsed
            ).tolist()
        if samples:
            agreements = _agreements(params, sampler, filled, seed, samples)
        judgement = judge(sampler.task, cloud, real, texts[: len(real)], ask_all=ask_all)
        prompt_tokens = fetch(encoded.lengths)
        for i, prompt in enumerate(real):
            length, asked = int(lengths[i]), ask_all or bool(judgement.called[i, 0])
            records.append(
                Record(
                    prompt_id=prompt.id,
                    policy=policy,
                    seed=seed,
                    question=prompt.question,
                    gold=dict(prompt.gold),
                    response_tokens=tokens[i, :length].tolist(),
                    response=texts[i][0],
                    finish="stop" if host.stopped[i, 0] else "length",
                    kind=parsed[i].kind.name.lower(),
                    answer=parsed[i].answer,
                    device_correct=bool(judgement.device_correct[i, 0]),
                    called=bool(judgement.called[i, 0]),
                    fallback=None,
                    fallback_correct=None,
                    device_tokens=length,
                    prompt_tokens=int(prompt_tokens[i]),
                    logprob=float(host.logprobs[i, 0].sum() / length),
                    p_call=p_call[i],
                    agreement=agreements[i],
                    device_seconds=usage.device_seconds(int(prompt_tokens[i]), length),
                    **_cloud_fields(sampler, usage, prompt, judgement, i, asked),
                )
            )
    if fallbacks:
        records = with_fallbacks(params, sampler, prompts, records, batch)
    return records


def _cloud_fields(
    sampler: Sampler, usage: UsageConfig, prompt: Prompt, judgement: Judgement, i: int, asked: bool
) -> dict[str, Any]:
    """What a record says of the cloud; None throughout where it was not asked.

    Seconds and dollars are the cloud's own where it has a clock and a price, else modelled.
    """
    names = ("cloud_correct", "cloud_failure", "cloud_tokens", "cloud_seconds", "cost")
    if not asked:
        return dict.fromkeys(names)
    answer, tokens = judgement.answers[i], int(judgement.cloud_tokens[i])
    if answer.failure is not None:
        return dict.fromkeys(names) | {"cloud_failure": answer.failure}
    question = len(sampler.vocabulary.encode(prompt.question))
    seconds, cost = answer.seconds, answer.cost
    return {
        "cloud_correct": bool(judgement.cloud_correct[i]),
        "cloud_failure": None,
        "cloud_tokens": tokens,
        "cloud_seconds": usage.cloud_seconds(tokens) if seconds is None else seconds,
        "cost": usage.dollars(question, tokens) if cost is None else cost,
    }


def _agreements(
    params: Params, sampler: Sampler, prompts: Sequence[Prompt], seed: int, samples: int
) -> list[float]:
    """`agreement` of k samples to each prompt, about as many rows at once as greedily."""
    sampling = dataclasses.replace(sampler.sampling, group=samples, temperature=1.0)
    several = dataclasses.replace(sampler, sampling=sampling)
    key = jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1))  # no step has this number
    shards = prompt_shards(sampler.mesh)
    at_once = max(len(prompts) // samples // shards, 1) * shards
    shares = []
    for first in range(0, len(prompts), at_once):
        real = list(prompts[first : first + at_once])
        _, rollout = several(params, real + [real[-1]] * (at_once - len(real)), key)
        groups = decode_responses(sampler.tokenizer, fetch(rollout))[: len(real)]
        for prompt, group in zip(real, groups, strict=True):
            answers = [sampler.task.parse(text).answer for text in group]
            shares.append(agreement([a and sampler.task.canonical(a, prompt) for a in answers]))
    return shares


def agreement(answers: Sequence[str | None]) -> float:
    """Self-consistency (arXiv 2203.11171): the share of k samples with the most frequent answer.

    Answers are compared in their task's canonical form. Samples that call or do not answer, None
    or empty, agree with nothing.
    """
    counts = Counter(filter(None, answers))
    return max(counts.values(), default=0) / len(answers)
