"""Runs a policy greedily over prompts and keeps a record of each."""

from collections.abc import Sequence

import jax
import numpy as np

from offload_jax.cloud.protocol import Cloud
from offload_jax.device.params import Params
from offload_jax.evaluation.records import Record
from offload_jax.judging import Judgement, judge
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
    ask_all: bool = False,
) -> list[Record]:
    """One greedy response to each prompt, judged; one record each, in the prompts' order.

    Args:
        params: the policy's weights.
        sampler: the training sampler; its temperature and group size are replaced.
        cloud: asked for the prompts that call.
        prompts: what to ask.
        policy: the name under which the records go.
        seed: of the run, noted in the records.
        batch: prompts decoded at once; the last batch is filled up with its last prompt, so that
            one compiled program serves all.
        ask_all: ask the cloud for every prompt, as random offloading and cloud-only rows need.
    """
    greedy, records = sampler.greedy(), []
    for first in range(0, len(prompts), batch):
        real = list(prompts[first : first + batch])
        filled = real + [real[-1]] * (batch - len(real))
        encoded, rollout = jax.device_get(greedy(params, filled, jax.random.key(0)))
        texts = decode_responses(sampler.tokenizer, rollout)[: len(real)]
        judgement = judge(sampler.task, cloud, real, texts, ask_all=ask_all)
        for i, prompt in enumerate(real):
            length = int(rollout.lengths[i, 0])
            parsed = sampler.task.parse(texts[i][0])
            records.append(
                Record(
                    prompt_id=prompt.id,
                    policy=policy,
                    seed=seed,
                    question=prompt.question,
                    gold=dict(prompt.gold),
                    response_tokens=rollout.tokens[i, 0, :length].tolist(),
                    response=texts[i][0],
                    finish="stop" if rollout.stopped[i, 0] else "length",
                    kind=parsed.kind.name.lower(),
                    answer=parsed.answer,
                    device_correct=bool(judgement.device_correct[i, 0]),
                    called=bool(judgement.called[i, 0]),
                    cloud_correct=_cloud_correct(judgement, i, ask_all),
                    device_tokens=length,
                    prompt_tokens=int(encoded.lengths[i]),
                )
            )
    return records


def _cloud_correct(judgement: Judgement, i: int, asked_all: bool) -> bool | None:
    asked = asked_all or bool(np.any(judgement.called[i]))
    return bool(judgement.cloud_correct[i]) if asked else None
