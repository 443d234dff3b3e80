"""Speed against the machine's own limits, all measured in one run.

The limits come first: the rate of matrix products at the device LLM's shapes and the bandwidth of
memory. Everything after is timed and divided by the time that these limits would allow.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from offload_jax.device.config import DeviceConfig
from offload_jax.device.model import decode_weights
from offload_jax.device.params import Params, count_params, init_params
from offload_jax.learning.optimizer import OptimizerConfig, make_optimizer
from offload_jax.learning.update import WeightedResponses, init_state, update
from offload_jax.sampling.rollout import PromptBatch, SamplingConfig, rollout, step_key
from offload_jax.settings import require
from offload_jax.sharding import MeshConfig, place
from offload_jax.training.experiment import BatchSettings

Row = dict[str, Any]
NEVER = -1  # a stop token that no vocabulary has


@dataclasses.dataclass(frozen=True)
class Workload:
    """G responses of T tokens to each of P prompts of S tokens, then an update on them."""

    device: DeviceConfig
    sampling: SamplingConfig
    batch: BatchSettings
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        self.batch.parts(self.sampling.group, "config.batch")


def check_shards(workload: Workload, shards: int) -> None:
    """Checks that the micro-batches, and with them all prompts, divide over the mesh.

    Raises:
        ValueError: they do not.
    """
    size = workload.batch.micro_prompts
    require(
        size % shards == 0,
        f"config.batch.micro_prompts is {size}, which does not divide over the {shards} shards of"
        " config.mesh (data x fsdp).",
    )


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the machine can do."""

    matmul: float  # FLOP/s, the best sustained rate at the model's shapes
    bandwidth: float  # bytes/s, reading


def benchmark(workload: Workload, mesh: Mesh) -> Iterator[Row]:
    """Yields one row per measurement; `name`, `seconds`, and what the measurement gives."""
    with jax.set_mesh(mesh):
        params = init_params(workload.device, jax.random.key(0), mesh)
        limits, rows = machine_limits(workload, params)
        yield from rows
        bench = _Bench(workload, mesh, params, limits)
        yield from bench.rollouts()
        yield from bench.updates()


def machine_limits(workload: Workload, params: Params) -> tuple[Limits, list[Row]]:
    """Sustained matrix products at the model's shapes, and the bandwidth of memory."""
    device, P = workload.device, workload.batch.prompts
    many, few = P * workload.sampling.prompt_tokens, P * workload.sampling.group
    weights = decode_weights(params, device, 1)
    layers = [_matrices(layer, device) for layer in weights["layers"]]
    everything = [*itertools.chain(*layers), weights["head"]]

    @jax.jit
    def products(inputs, matrices):
        return [m @ inputs[m.shape[1]] for m in matrices]

    def rate(rows: int, matrices: list[jax.Array]) -> tuple[float, float]:
        inputs = {m.shape[1]: jnp.ones((m.shape[1], rows), device.compute) for m in matrices}
        seconds = _best(lambda: products(inputs, matrices), budget=1.0)
        return 2 * rows * sum(m.size for m in matrices) / seconds, seconds

    results = {
        f"products of one layer, {many} rows": rate(many, layers[0]),
        f"products of one layer, {few} rows": rate(few, layers[0]),
        f"products of all weights once, {few} rows": rate(few, everything),
    }
    size = 2**28 if device.width > 256 else 2**26
    big = jnp.ones(size, jnp.float32)
    read = _best(lambda: jnp.sum(big), budget=1.0)
    limits = Limits(max(r for r, _ in results.values()), 4 * size / read)
    rows = [
        {"name": name, "seconds": seconds, "gflops": flops / 1e9, "share": flops / limits.matmul}
        for name, (flops, seconds) in results.items()
    ]
    gb = limits.bandwidth / 1e9
    return limits, [*rows, {"name": "reading memory", "seconds": read, "gb_per_second": gb}]


@dataclasses.dataclass(frozen=True)
class _Bench:
    workload: Workload
    mesh: Mesh
    params: Params
    limits: Limits

    def rollouts(self) -> Iterator[Row]:
        """Full-length, long and ragged rollouts against their bounds."""
        sampling, P = self.workload.sampling, self.workload.batch.prompts
        G, T = sampling.group, sampling.response_tokens
        prefill = self._rollout(P, G, 1)
        full = self._rollout(P, G, T)
        full["share"] = self.rollout_bound(T, [P * G] * (T - 1)) / full["seconds"]
        yield {"name": f"prefill and first token, {P} prompts", **prefill}
        yield {"name": f"rollout, {P} x {G} x {T} tokens", **full}

        step = (full["seconds"] - prefill["seconds"]) / (T - 1)
        long = self._rollout(P, G, 8 * T, repeats=1)
        long_step = (long["seconds"] - prefill["seconds"]) / (8 * T - 1)
        cache = P * G * self._cache_bytes() / self.limits.bandwidth  # per position of the cache
        added = cache * (8 * T - T) / 2
        yield {
            "name": f"rollout, {P} x {G} x {8 * T} tokens",
            **long,
            "share": self.rollout_bound(8 * T, [P * G] * (8 * T - 1)) / long["seconds"],
            "ms_per_step": 1e3 * long_step,
            "ms_per_step_short": 1e3 * step,
            "ms_reading_the_longer_cache": 1e3 * added,
            "growth_beyond_cache": (long_step - added) / step - 1,
        }

        single = self._rollout(1, 1, T)
        one = (single["seconds"] - self._rollout(1, 1, 1)["seconds"]) / (T - 1)
        lengths = np.random.default_rng(0).geometric(1 / T, (P, G)).clip(1, 4 * T)
        running = [(lengths > t).sum() for t in range(1, 4 * T)]
        needed = prefill["seconds"] + sum(max(n / (P * G) * step, one) for n in running if n)
        for shrink in (1.0, sampling.shrink):
            ragged = self._rollout(P, G, 4 * T, lengths.astype(np.int32), shrink)
            yield {
                "name": f"rollout, lengths geometric, mean {T} of {4 * T}, shrink {shrink}",
                **ragged,
                "tokens_per_second": lengths.sum() / ragged["seconds"],
                "share": self.rollout_bound(4 * T, running) / ragged["seconds"],
                "seconds_needed": needed,
                "of_needed": ragged["seconds"] / needed,
            }

    def updates(self) -> Iterator[Row]:
        """Updates with all, half and a quarter of the prompts carrying a gradient."""
        work, P = self.workload, self.workload.batch.prompts
        G, T, S = work.sampling.group, work.sampling.response_tokens, work.sampling.prompt_tokens
        optimizer = make_optimizer(OptimizerConfig(rate=1e-6), 100)
        copy = jax.tree.map(jnp.copy, self.params)  # the state is donated
        state = init_state(copy, optimizer, work.device, self.mesh)
        held = sum(x.nbytes for x in jax.tree.leaves(state)) + _bytes(self.params, jnp.float32)
        rng = np.random.default_rng(1)
        tokens = rng.integers(0, work.device.vocabulary, (P, G, T)).astype(np.int32)
        lengths = np.full((P, G), T, np.int32)
        options = {
            "config": work.device,
            "optimizer": optimizer,
            "micro_prompts": work.batch.micro_prompts,
            "micro_group": work.batch.micro_group,
            "length_buckets": work.batch.length_buckets,
        }
        compiled, whole = None, None
        for kept in sorted({P, max(P // 2, 1), max(P // 4, 1)}, reverse=True):
            weights = np.zeros((P, G), np.float32)
            weights[:kept] = rng.standard_normal((kept, G))
            arrays = place(self.mesh, (tokens, lengths, weights), "prompts")
            batch = WeightedResponses(self._prompts(P, S), *arrays)
            if compiled is None:
                compiled, about = _compile(update.lower(state, batch, **options))

            def run(batch=batch, compiled=compiled):
                nonlocal state
                state, metrics = compiled(state, batch)
                return metrics

            seconds = _best(run, repeats=2)
            whole = whole or seconds
            head, layers = self._sizes()
            flops = 6 * kept * (layers * (S + G * T) + head * G * T)
            row = {
                "name": f"update, {kept} of {P} prompts with a gradient",
                "seconds": seconds,
                "gflops": flops / seconds / 1e9,
                "share": flops / seconds / self.limits.matmul,
                "of_proportional": seconds / whole * P / kept,
            }
            if kept == P:
                row |= {**about, "memory_of_state": about["peak_bytes"] / held}
            yield row

    def rollout_bound(self, T: int, running: list[int]) -> float:
        """Seconds that the limits allow: prefills, then `running[t]` rows at each decoding step.

        Each is the larger of computing (2 FLOPs per weight and row) and reading (the weights once,
        the filled caches); attention's FLOPs are left out.
        """
        device, P = self.workload.device, self.workload.batch.prompts
        S, R = self.workload.sampling.prompt_tokens, P * self.workload.sampling.group
        head, layers = self._sizes()
        item = device.compute.itemsize
        bound = max(
            2 * (layers * P * S + head * P) / self.limits.matmul,
            item * (layers + head) / self.limits.bandwidth,
        )
        for t, rows in enumerate(running):
            if rows:
                cached = self._cache_bytes() * (rows * t + min(P, rows) * S * (rows > 0))
                bound += max(
                    2 * (layers + head) * rows / self.limits.matmul,
                    (item * (layers + head) + cached) / self.limits.bandwidth,
                )
        require(len(running) < T and max(running) <= R, "more rows or steps than the rollout has")
        return bound

    def _sizes(self) -> tuple[int, int]:
        """Numbers in the head, and in all weights but head and embedding."""
        device = self.workload.device
        head = device.vocabulary * device.width
        return head, count_params(device) - head * (1 if device.tied_embeddings else 2)

    def _cache_bytes(self) -> int:
        device = self.workload.device
        per_layer = 2 * device.kv_heads * device.head_size * device.compute.itemsize
        return device.layers * per_layer

    def _prompts(self, P: int, S: int) -> PromptBatch:
        tokens = np.random.default_rng(0).integers(0, self.workload.device.vocabulary, (P, S))
        batch = PromptBatch(np.arange(P, dtype=np.int32), tokens.astype(np.int32), np.full(P, S))
        # One prompt does not divide over several shards; it is measured all the same.
        return place(self.mesh, batch, "prompts" if self.workload.batch.prompts == P else None)

    def _rollout(self, P, G, T, lengths=None, shrink=None, repeats=2) -> Row:
        """Times one rollout; all responses run to T tokens, or to `lengths`."""
        work = self.workload
        shrink = work.sampling.shrink if shrink is None else shrink
        sampling = dataclasses.replace(
            work.sampling, group=G, response_tokens=T, shrink=shrink if lengths is not None else 1.0
        )
        limits = np.full((P, G), T, np.int32) if lengths is None else lengths
        limits = place(self.mesh, limits, "prompts" if work.batch.prompts == P else None)
        arguments = (self.params, self._prompts(P, sampling.prompt_tokens))
        compiled, about = _compile(
            rollout.lower(
                *arguments, step_key(0, 0), limits,
                config=work.device, sampling=sampling, stops=(NEVER,), pad=0,
            )
        )  # fmt: skip
        seconds = _best(lambda: compiled(*arguments, step_key(0, 1), limits), repeats=repeats)
        return {"seconds": seconds, "tokens_per_second": P * G * T / seconds, **about}


def _compile(lowered) -> tuple[Callable, Row]:
    """The compiled program, the seconds that took, and the bytes it holds at its peak."""
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return compiled, {"compile_seconds": seconds, "peak_bytes": peak}


def _best(run: Callable[[], Any], repeats: int | None = None, budget: float | None = None) -> float:
    """The shortest of several runs, in seconds, the first (warm-up) apart if time is short."""
    shortest, spent, runs = np.inf, 0.0, 0
    jax.block_until_ready(run()) if repeats is None else None
    while runs < (repeats or 3) or (budget is not None and spent < budget):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds = time.perf_counter() - began
        shortest, spent, runs = min(shortest, seconds), spent + seconds, runs + 1
    return float(shortest)


def _matrices(layer: Params, device: DeviceConfig) -> list[jax.Array]:
    """A layer's matrices [out, in] in the order of use."""
    inputs = {"output": device.heads * device.head_size, "down": device.mlp}
    names = ("query", "key", "value", "output", "gate", "up", "down")
    return [layer[n].reshape(-1, inputs.get(n, device.width)) for n in names]


def _bytes(tree: Any, dtype: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree)) * jnp.dtype(dtype).itemsize
