"""The device LLM's starting point: a pretrained LLM, or a small decoder trained from nothing.

Either learns the form of responses from examples that the task generates, so that it sometimes
solves, sometimes errs, sometimes calls.
"""

import dataclasses
import random
import sys
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from offload_jax.device.params import Params, fourier_features, init_params
from offload_jax.learning.optimizer import make_optimizer
from offload_jax.learning.update import WeightedResponses, init_state, update
from offload_jax.pretrained.checkpoint import Pretrained
from offload_jax.processes import fetch, is_main
from offload_jax.sampling.sampler import Sampler
from offload_jax.settings import require
from offload_jax.sharding import place
from offload_jax.tasks.countdown.tokenizer import number_tokens
from offload_jax.tasks.countdown.traces import TraceConfig
from offload_jax.tasks.math.config import SolutionConfig
from offload_jax.tasks.task import Prompt, Task
from offload_jax.training.data import training_batches
from offload_jax.training.experiment import Experiment
from offload_jax.training.loop import Stage
from offload_jax.vocabulary import Vocabulary


def start_stage(experiment: Experiment, sampler: Sampler) -> Stage:
    """Supervised learning: maximise the mean log-probability of the traces' tokens."""
    settings = experiment.start
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    taught = fitting(experiment, lessons(sampler.task), sampler.task)
    batches = training_batches(taught, settings.batch.prompts, experiment.seed, "start")

    def step(state, step):
        batch = trace_batch(experiment, sampler, batches[step], step)
        state, stats = update(
            state,
            batch,
            config=experiment.device,
            optimizer=optimizer,
            micro_prompts=settings.batch.micro_prompts,
            length_buckets=settings.batch.length_buckets,
        )
        stats = fetch(stats)
        return state, {"loss": stats["loss"], "gradient_norm": stats["gradient_norm"]}

    return Stage(
        name="start",
        steps=settings.steps,
        every=max(settings.steps // 4, 1),
        step=step,
        rate_setting="config.start.optimizer.rate",
        shown=("loss",),
    )


def lessons(task: Task) -> Sequence[Prompt]:
    """What the start is taught about: the task's own `lessons`, or the prompts of "train"."""
    return getattr(task, "lessons", None) or task.prompts("train")


def fitting(experiment: Experiment, prompts: Sequence[Prompt], task: Task) -> Sequence[Prompt]:
    """The lessons whose example is no longer than a response may be.

    Examples that a task generates must all be so; published solutions are as long as they are, and
    how many are left out is told on stderr.

    Raises:
        ValueError: a generated example is too long, or too few solutions are left.
    """
    settings, room = experiment.start, experiment.sampling.response_tokens
    if settings.steps == 0 or isinstance(settings.traces, TraceConfig):
        return prompts  # no example is needed, or max_tokens bounds them
    whole = dataclasses.replace(settings.traces, solve=1.0)  # half of a solution is shorter
    texts = task.examples(prompts, random.Random(experiment.seed), whole)
    lengths = [len(row) for row in _encoded(texts, task.vocabulary)]
    kept = [prompt for prompt, n in zip(prompts, lengths, strict=True) if n <= room]
    published = isinstance(settings.traces, SolutionConfig)
    require(
        len(kept) == len(prompts) or (published and len(kept) >= settings.batch.prompts),
        f"config.sampling.response_tokens is {room}; {len(prompts) - len(kept):,} of"
        f" {len(prompts):,} examples of the start are longer, the longest has {max(lengths)}.",
    )
    if len(kept) < len(prompts) and is_main():
        left_out = f"{len(prompts) - len(kept):,} of {len(prompts):,} solutions"
        print(f"start: {left_out} are longer than {room} tokens and left out", file=sys.stderr)
    return kept


def init_start(experiment: Experiment, sampler: Sampler, mesh: Mesh):
    """Step 0: the checkpoint's weights, or random ones with numbers embedded by their values."""
    # Steps fold in their number, evaluation 2**32 - 1.
    key = jax.random.fold_in(jax.random.key(experiment.seed), np.uint32(2**32 - 2))
    if experiment.device.pretrained is not None:
        params = Pretrained(experiment.device.pretrained).params(experiment.device, key, mesh)
    else:
        params = embed_numbers(init_params(experiment.device, key, mesh), sampler)
    optimizer = make_optimizer(experiment.start.optimizer, experiment.start.steps)
    return init_state(params, optimizer, experiment.device, mesh)


def embed_numbers(params: Params, sampler: Sampler) -> Params:
    """Replaces the embeddings of number tokens by Fourier features of their values."""
    ids, values = number_tokens(sampler.tokenizer)
    rows = fourier_features(values, params["embedding"].shape[1])
    embedding = params["embedding"].at[ids].set(rows.astype(params["embedding"].dtype))
    return {**params, "embedding": jax.device_put(embedding, params["embedding"].sharding)}


def trace_batch(experiment: Experiment, sampler: Sampler, prompts, step: int) -> WeightedResponses:
    """Examples for the prompts, groups of one, weighted so that the loss is a mean over tokens."""
    rng = random.Random(f"{experiment.seed}/traces/{step}")
    late = step >= experiment.start.steps - experiment.start.late_steps
    traces = experiment.start.late_traces if late else experiment.start.traces
    texts = sampler.task.examples(prompts, rng, traces)
    pad, rows = sampler.vocabulary.pad, _encoded(texts, sampler.vocabulary)
    longest, room = max(map(len, rows)), experiment.sampling.response_tokens
    require(
        longest <= room,
        f"config.sampling.response_tokens is {room}; an example of the start has {longest}.",
    )
    tokens = np.full((len(rows), 1, experiment.sampling.response_tokens), pad, np.int32)
    for i, row in enumerate(rows):
        tokens[i, 0, : len(row)] = row
    lengths = np.array([[len(row)] for row in rows], np.int32)
    weights = np.full(lengths.shape, 1 / lengths.sum(), np.float32)
    tokens, lengths, weights = place(sampler.mesh, (tokens, lengths, weights), "prompts")
    return WeightedResponses(sampler.encode(prompts), tokens, lengths, weights)


def _encoded(texts: Sequence[str], vocabulary: Vocabulary) -> list[list[int]]:
    """Training texts as ids, each with the token that ends a response."""
    encoded = vocabulary.tokenizer.encode_batch(texts, add_special_tokens=False)
    return [[*encoding.ids, vocabulary.stops[0]] for encoding in encoded]
