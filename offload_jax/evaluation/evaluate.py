"""Runs a policy greedily over prompts and keeps a record of each."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from offload_jax.cloud.protocol import Cloud
from offload_jax.device.params import Params
from offload_jax.evaluation.decision import call_probabilities
from offload_jax.evaluation.records import Record
from offload_jax.evaluation.usage import UsageConfig
from offload_jax.judging import judge
from offload_jax.sampling.sampler import Sampler
from offload_jax.sampling.text import decode_responses
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
        samples: responses sampled besides for self-consistency, k; 0: none, and no `agreement`.
    """
    greedy, records = sampler.greedy(), []
    for first in range(0, len(prompts), batch):
        real = list(prompts[first : first + batch])
        filled = real + [real[-1]] * (batch - len(real))
        encoded, rollout = greedy(params, filled, jax.random.key(0))
        scores = None if not samples else _agreement(params, sampler, filled, seed, samples)
        host = jax.device_get(rollout)
        texts = decode_responses(sampler.tokenizer, host)
        parsed = [sampler.task.parse(text) for (text,) in texts]
        p_call = call_probabilities(
            params, sampler.device, sampler.task, encoded, host.tokens, host.lengths, parsed
        )
        judgement = judge(sampler.task, cloud, real, texts[: len(real)], ask_all=ask_all)
        prompt_tokens = np.asarray(encoded.lengths)
        for i, prompt in enumerate(real):
            length = int(host.lengths[i, 0])
            asked = ask_all or bool(judgement.called[i, 0])
            question_tokens = len(sampler.tokenizer.encode(prompt.question).ids)
            cloud_tokens = int(judgement.cloud_tokens[i])
            records.append(
                Record(
                    prompt_id=prompt.id,
                    policy=policy,
                    seed=seed,
                    question=prompt.question,
                    gold=dict(prompt.gold),
                    response_tokens=host.tokens[i, 0, :length].tolist(),
                    response=texts[i][0],
                    finish="stop" if host.stopped[i, 0] else "length",
                    kind=parsed[i].kind.name.lower(),
                    answer=parsed[i].answer,
                    device_correct=bool(judgement.device_correct[i, 0]),
                    called=bool(judgement.called[i, 0]),
                    cloud_correct=bool(judgement.cloud_correct[i]) if asked else None,
                    device_tokens=length,
                    prompt_tokens=int(prompt_tokens[i]),
                    logprob=float(host.logprobs[i, 0].sum() / length),
                    p_call=float(p_call[i]),
                    agreement=None if scores is None else float(scores[i]),
                    cloud_tokens=cloud_tokens if asked else None,
                    device_seconds=usage.device_seconds(int(prompt_tokens[i]), length),
                    cloud_seconds=usage.cloud_seconds(cloud_tokens) if asked else None,
                    cost=usage.dollars(question_tokens, cloud_tokens) if asked else None,
                )
            )
    return records


def _agreement(
    params: Params, sampler: Sampler, prompts: Sequence[Prompt], seed: int, samples: int
) -> list[float]:
    """Self-consistency (arXiv 2203.11171): the share of k samples with the most frequent answer.

    Samples that call or do not answer agree with nothing.
    """
    sampling = dataclasses.replace(sampler.sampling, group=samples, temperature=1.0)
    several = dataclasses.replace(sampler, sampling=sampling)
    key = jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1))  # no step has this number
    _, rollout = several(params, prompts, key)
    shares = []
    for group in decode_responses(sampler.tokenizer, jax.device_get(rollout)):
        answers = [sampler.task.parse(text).answer for text in group]
        counts = Counter(answer for answer in answers if answer is not None)
        shares.append(max(counts.values(), default=0) / samples)
    return shares
