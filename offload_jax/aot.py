"""What a step of post-training needs on a TPU slice, compiled for it on a machine without one.

The programs are the ones that training runs, `rollout` and `update`, lowered on shapes and
shardings instead of arrays. XLA's TPU compiler (libtpu) says what they take of each chip's memory;
`offload_jax.hlo` reads what they compute and move.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import count_params
from offload_jax.hlo import Collective, Work, work
from offload_jax.learning.update import TrainState, WeightedResponses, state_shapes, update
from offload_jax.sampling.compaction import grids
from offload_jax.sampling.rollout import PromptBatch, SamplingConfig, rollout
from offload_jax.settings import parse, require
from offload_jax.sharding import MeshConfig, prepare_tpus, prompt_shards, sharding_of
from offload_jax.training.experiment import LearningSettings
from offload_jax.training.post_training import update_options


@dataclasses.dataclass(frozen=True)
class Workload:
    """The sections of an experiment that shape its programs."""

    device: DeviceConfig
    sampling: SamplingConfig
    learning: LearningSettings
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    @property
    def sampled_prompts(self) -> int:
        """Prompts per rollout."""
        return self.learning.batch.prompts // self.learning.sampling_parts


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a step, on one chip."""

    name: str
    work: Work
    tokens: int  # that pass through the model, on all chips
    model_flops: float  # 2 N tokens, or 6 N tokens of the update, divided over the chips


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, on one chip."""

    name: str
    compile_seconds: float
    memory: dict[str, int]  # bytes by purpose; what else must stay in memory is `resident`
    phases: tuple[Phase, ...]

    @property
    def bytes(self) -> int:
        """HBM needed while it runs."""
        return sum(self.memory.values())


class DoesNotFitError(Exception):
    """The compiler found no way to fit a program into a chip's memory."""


def workload_of(config) -> Workload:
    """The sections of an experiment's config that are compiled; the others are not read."""
    config = config.copy_and_resolve_references()
    names = [name for name in ("device", "sampling", "learning", "mesh") if name in config]
    require(config.get("device", {}).get("pretrained") is None, NO_CHECKPOINT)
    return parse(Workload, {name: config[name] for name in names})


NO_CHECKPOINT = (
    "config.device.pretrained is set; give the model's shape in config.device instead, so that no"
    " checkpoint is needed."
)


def topology(name: str) -> list[jax.Device]:
    """The devices of a slice such as "v5e:8x8", without having one.

    Raises:
        ValueError: libtpu is missing, or knows no such slice.
    """
    require(
        importlib.util.find_spec("libtpu") is not None,
        "Compiling for TPUs needs the package libtpu: pip install 'offload_jax[tpu]'.",
    )
    # Otherwise libtpu looks for the TPU of this machine, and says at length that there is none.
    for variable, value in _NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    prepare_tpus()
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--topology={name} is no TPU slice (as v5e:8x8 is): {reason}") from None


_NO_TPU_HERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it only compiles; several processes may
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def check(workload: Workload, mesh: Mesh) -> None:
    """Checks that prompts and micro-batches divide over the mesh.

    Raises:
        ValueError: naming the setting that does not.
    """
    shards, batch = prompt_shards(mesh), workload.learning.batch
    for name, size in {
        "config.learning.batch.micro_prompts": batch.micro_prompts,
        "config.learning.batch.prompts / sampling_parts": workload.sampled_prompts,
    }.items():
        require(
            size % shards == 0,
            f"{name} is {size}, which does not divide over the {shards} shards of config.mesh"
            " (data x fsdp).",
        )
    batch.parts(workload.sampling.group, "config.learning.batch")


def programs(workload: Workload, mesh: Mesh) -> Iterator[Program]:
    """Compiles rollout and update.

    Raises:
        DoesNotFitError: one needs more than a chip's memory.
    """
    options = update_options(workload.learning, workload.device, workload.sampling)
    state = state_shapes(options["optimizer"], workload.device, mesh)
    yield _rollout(workload, mesh, state)
    yield _update(workload, mesh, state, options)


def _rollout(workload: Workload, mesh: Mesh, state: TrainState) -> Program:
    """Prefill, and every response decoded to its longest: smaller grids never come into play."""
    P, sampling = workload.sampled_prompts, workload.sampling
    with jax.set_mesh(mesh):
        key = jax.eval_shape(lambda: jax.random.key(0))
        lowered = rollout.lower(
            state.params,
            _prompts(P, sampling.prompt_tokens, mesh),
            _shape((), key.dtype, mesh),
            config=workload.device,
            sampling=sampling,
            stops=(0,),  # which tokens these are changes nothing
            pad=0,
        )
        text, seconds, memory = _compiled(lowered)
    memory["resident: optimiser"] = _bytes((state.optimizer, state.step))
    loops = len(grids(P // prompt_shards(mesh), sampling.group, sampling.shrink))
    steps = sampling.response_tokens - 1
    alone = work(text, [0] * loops)
    whole = work(text, [steps] + [0] * (loops - 1))
    pairs = list(zip(whole.collectives, alone.collectives, strict=True))
    prefill = dataclasses.replace(alone, collectives=[b for _, b in pairs if b.times])
    decode = Work(
        whole.flops - alone.flops,
        whole.bytes - alone.bytes,
        [a for a, b in pairs if a.times and not b.times],
    )
    tokens = P * sampling.prompt_tokens, P * sampling.group * steps
    phases = (
        _phase("prefill", prefill, tokens[0], 2, workload, mesh),
        _phase("decode", decode, tokens[1], 2, workload, mesh),
    )
    return Program("rollout", seconds, memory, phases)


def _update(workload: Workload, mesh: Mesh, state: TrainState, options: dict[str, Any]) -> Program:
    """The update on a batch in which every prompt counts and every response is the longest."""
    batch, sampling = workload.learning.batch, workload.sampling
    P, G, S, T = batch.prompts, sampling.group, sampling.prompt_tokens, sampling.response_tokens
    responses = WeightedResponses(
        _prompts(P, S, mesh),
        _shape((P, G, T), jnp.int32, mesh, "prompts"),
        _shape((P, G), jnp.int32, mesh, "prompts"),
        _shape((P, G), jnp.float32, mesh, "prompts"),
        _shape((P, G, T), jnp.float32, mesh, "prompts"),
    )
    with jax.set_mesh(mesh):
        lowered = update.lower(state, responses, **options)
        text, seconds, memory = _compiled(lowered)
    # Sorted by length, all micro-batches are in the last bucket.
    micro_batches = P // batch.micro_prompts * batch.parts(G, "config.learning.batch")
    trips = [0] * (batch.length_buckets - 1) + [micro_batches]
    tokens = workload.learning.objective.updates * P * (S + G * T)
    phase = _phase("update", work(text, trips), tokens, 6, workload, mesh)
    return Program("update", seconds, memory, (phase,))


def _phase(name, done: Work, tokens: int, per_weight: int, workload, mesh) -> Phase:
    flops = per_weight * count_params(workload.device) * tokens / mesh.size
    return Phase(name, done, tokens, flops)


def _compiled(lowered: Any) -> tuple[str, float, dict[str, int]]:
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"Used \S+ of \S+ hbm[^\n]*", str(error))
        if found is None:
            raise
        raise DoesNotFitError(found[0]) from None
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    return (
        compiled.as_text(),
        seconds,
        {
            "arguments": memory.argument_size_in_bytes,
            "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
    )


def _prompts(P: int, S: int, mesh: Mesh) -> PromptBatch:
    shapes = ((P,), (P, S), (P,))
    return PromptBatch(*(_shape(shape, jnp.int32, mesh, "prompts") for shape in shapes))


def _shape(shape, dtype, mesh: Mesh, *axes: str) -> jax.ShapeDtypeStruct:
    axes = (*axes, *[None] * (len(shape) - len(axes)))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding_of(mesh, axes, shape))


def _bytes(shapes: Any) -> int:
    """What a tree of sharded shapes takes on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(shapes)
    )


def collective_rows(found: list[Collective]) -> list[dict[str, Any]]:
    """Collectives alike in kind, place and repetition as one row each, the most bytes first."""
    rows: dict[tuple, dict[str, Any]] = {}
    for one in found:
        key = (one.kind, len(one.loops), one.repeats)
        row = rows.setdefault(
            key,
            {
                "kind": one.kind,
                "loops_around": len(one.loops),
                "same_in_every_turn": one.repeats,
                "operations": 0,
                "runs": 0,
                "bytes": 0,
            },
        )
        row["operations"] += 1
        row["runs"] += one.times
        row["bytes"] += one.times * one.bytes
    return sorted(rows.values(), key=lambda row: -row["bytes"])
