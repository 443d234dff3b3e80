"""Post-training with GAPG or a rival: sample, judge, filter, update."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from offload_jax.cloud.protocol import BUDGET, DENIED, Answer, Cloud, CloudError
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params
from offload_jax.evaluation.evaluate import evaluate
from offload_jax.evaluation.metrics import summary
from offload_jax.judging import Judgement, judge
from offload_jax.learning.objective import Learnt, learn
from offload_jax.learning.optimizer import make_optimizer
from offload_jax.learning.update import TrainState, WeightedResponses, init_state, update
from offload_jax.processes import fetch
from offload_jax.sampling.rollout import PromptBatch, Rollout, SamplingConfig, step_key
from offload_jax.sampling.sampler import Sampler
from offload_jax.sampling.text import decode_responses
from offload_jax.sharding import place
from offload_jax.tasks.task import Prompt
from offload_jax.training.data import training_batches
from offload_jax.training.experiment import Experiment, LearningSettings
from offload_jax.training.loop import Metrics, Stage

jit_learn = jax.jit(learn, static_argnames=("objective", "reward", "filter", "T"))


def post_training_stage(
    experiment: Experiment,
    sampler: Sampler,
    cloud: Cloud,
    name: str,
    warn: Callable[[], str | None],
) -> Stage:
    """The stage that teaches the device LLM to solve and to call, under the policy's `name`."""
    settings = experiment.learning
    objective = settings.objective
    options = update_options(settings, experiment.device, sampler.sampling)
    P = settings.batch.prompts
    batches = training_batches(sampler.task.prompts("train"), P, experiment.seed, "post-training")

    def step(state: TrainState, step: int) -> tuple[TrainState, Metrics]:
        clock, timed = _Clock(), _Timed(cloud)
        key = step_key(experiment.seed, step)
        prompts = batches[step]
        batch, rollout, judgement, waited = sample_and_judge(
            state.params, sampler, timed, prompts, key, settings.sampling_parts
        )
        responses = fetch(rollout)
        clock.lap("sample")
        clock.move("sample", "judge", waited)  # mostly for the cloud
        check_cloud(judgement.answers)
        # Sample keys fold in prompt ids, which are never negative: -1 is the filter's own stream.
        filter_key = jax.random.fold_in(key, np.uint32(2**32 - 1))
        learnt = jit_learn(
            place(sampler.mesh, judgement.for_device(), "prompts"),
            rollout.lengths,
            batch.ids,
            filter_key,
            objective=objective,
            reward=settings.reward,
            filter=settings.filter,
            T=sampler.sampling.response_tokens,
        )
        weighted = WeightedResponses(
            batch, rollout.tokens, rollout.lengths, learnt.weights, rollout.logprobs
        )
        state, stats = update(state, weighted, **options)
        stats, learnt = fetch((stats, learnt))
        clock.lap("update")
        del stats["loss"]
        timings = {**clock.laps, "cloud/seconds": timed.seconds}  # the latter overlapped or not
        return state, {**batch_metrics(responses, judgement, learnt), **stats, **timings}

    return Stage(
        name=name,
        steps=settings.steps,
        every=experiment.evaluation.every,
        step=step,
        rate_setting="config.learning.optimizer.rate",
        evaluate=lambda state: validate(experiment, sampler, cloud, state.params),
        shown=("reward", "accuracy", "call_ratio"),
        warn=warn,
    )


def validate(experiment: Experiment, sampler: Sampler, cloud: Cloud, params: Params) -> Metrics:
    """What a policy in training scores on validation prompts, greedily and under the cap."""
    settings = experiment.evaluation
    records = evaluate(
        params,
        sampler,
        cloud,
        sampler.task.prompts("validation")[: settings.validation_prompts],
        policy="validation",
        seed=experiment.seed,
        batch=settings.batch,
        usage=settings.usage,
        scores=False,
    )
    values = summary(records, settings.cap, experiment.seed)
    return {f"validation/{name}": value for name, value in values.items()}


def init_post_training(experiment: Experiment, params: Params, mesh: Mesh) -> TrainState:
    """Step 0 of post-training: a copy of the start's weights, a fresh optimiser."""
    params = jax.tree.map(jnp.copy, params)  # the update donates its state; others start here too
    optimizer = post_training_optimizer(experiment.learning)
    return init_state(params, optimizer, experiment.device, mesh)


def post_training_optimizer(settings: LearningSettings) -> optax.GradientTransformation:
    """The optimiser of post-training."""
    return make_optimizer(settings.optimizer, settings.steps * settings.objective.updates)


def update_options(
    settings: LearningSettings, device: DeviceConfig, sampling: SamplingConfig
) -> dict[str, Any]:
    """The static arguments of post-training's `update`."""
    objective = settings.objective
    return {
        "config": device,
        "optimizer": post_training_optimizer(settings),
        "temperature": sampling.temperature,
        "micro_prompts": settings.batch.micro_prompts,
        "micro_group": settings.batch.micro_group,
        "length_buckets": settings.batch.length_buckets,
        "importance_cap": settings.importance_cap,
        "clip": objective.clip if objective.clipped else None,
        "repeats": objective.updates,
    }


def batch_metrics(rollout: Rollout, judgement: Judgement, learnt: Learnt) -> Metrics:
    """What one training batch looked like; host arrays in, means over all responses out."""
    asked = [answer for answer in judgement.answers if answer is not None]
    answered = [answer is not None and answer.failure is None for answer in judgement.answers]
    answered_calls = judgement.called & np.array(answered)[:, None]
    cloud_right = (answered_calls & judgement.cloud_correct[:, None]).sum()
    calls = answered_calls.sum()
    return {
        "reward": learnt.rewards.mean(),
        "accuracy": judgement.device_correct.mean(),
        "call_ratio": judgement.called.mean(),
        "cloud_accuracy": cloud_right / calls if calls else None,  # of answered calls
        "cloud/asked": len(asked),
        "cloud/failed": sum(answer.failure is not None for answer in asked),
        "cloud/cached": sum(answer.cached for answer in asked),
        "d1": learnt.kept.d1.sum(),
        "d2": learnt.kept.d2.sum(),
        "response_tokens": rollout.lengths.mean(),
        "stopped": rollout.stopped.mean(),
        "surprisal": -rollout.logprobs.sum() / rollout.lengths.sum(),  # per sampled token, in nats
    }


class _Clock:
    """Seconds spent in the parts of a step."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"seconds/{name}"], self._last = now - self._last, now

    def move(self, name: str, to: str, seconds: float) -> None:
        """Tells a part of a lap apart from the rest of it."""
        self.laps[f"seconds/{name}"] -= seconds
        self.laps[f"seconds/{to}"] = seconds


class _Timed:
    """A cloud, and the seconds that it took."""

    def __init__(self, cloud: Cloud):
        self._cloud, self.seconds = cloud, 0.0

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        began = time.perf_counter()
        try:
            return self._cloud.answer(prompts)
        finally:
            self.seconds += time.perf_counter() - began


def sample_and_judge(
    params: Params,
    sampler: Sampler,
    cloud: Cloud,
    prompts: Sequence[Prompt],
    key: Key[Array, ""],
    parts: int = 1,
) -> tuple[PromptBatch, Rollout, Judgement, float]:
    """Groups of responses to a batch of prompts, and their judgement.

    The batch is sampled in `parts`: while one is sampled, the one before is judged, that is, its
    calls are with the cloud. A response depends on its prompt, its sample and the key alone, so
    that the parts change nothing but the time.

    Returns:
        The encoded prompts, their responses and judgement, and the seconds that were spent waiting
        for judgements after everything was sampled.
    """
    size = len(prompts) // parts
    pieces = [prompts[first : first + size] for first in range(0, len(prompts), size)]
    batches, rollouts, judging = [], [], []
    pool = ThreadPoolExecutor(1)
    try:
        for piece in pieces:
            batch, rollout = sampler(params, piece, key)
            texts = decode_responses(sampler.tokenizer, fetch(rollout))
            judging.append(pool.submit(judge, sampler.task, cloud, piece, texts))
            batches.append(batch)
            rollouts.append(rollout)
        began = time.perf_counter()
        judgements = [future.result() for future in judging]
        waited = time.perf_counter() - began
    finally:
        # Ctrl-C does not wait for the calls under way; whoever owns the cloud ends them.
        pool.shutdown(wait=False, cancel_futures=True)
    answers = tuple(answer for judgement in judgements for answer in judgement.answers)
    judgement = _joined([judgement.for_device() for judgement in judgements], np.concatenate)
    return (
        _joined(batches, jnp.concatenate),
        _joined(rollouts, jnp.concatenate),
        judgement.replace(answers=answers),
        waited,
    )


def _joined(trees: Sequence[Any], concatenate: Callable) -> Any:
    """Trees of arrays, one after the other along the first axis."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: concatenate(x), *trees)


def check_cloud(answers: Sequence[Answer | None]) -> None:
    """Raises CloudError where an answer is missing for good: budget spent, or key denied.

    A cloud that is down is another matter: its prompts teach no calls, and training goes on.
    """
    failures = {answer.failure for answer in answers if answer is not None}
    kept = "so this step cannot be judged; the last checkpoint is kept."
    if BUDGET in failures:
        raise CloudError(f"The cloud's budget is spent (config.cloud.budget), {kept}")
    if DENIED in failures:
        raise CloudError(
            f"The cloud denies access (401, 402 or 403: key, balance or permission), {kept}"
        )
