"""What bounds a step of post-training on so many chips: a cost model of few assumptions.

Every time is what the chip's peak rates allow, so a lower bound. `docs/scaling.md` states the
assumptions and compares with compiled programs.
"""

import dataclasses
import math

from offload_jax.aot import Workload
from offload_jax.device.params import count_params
from offload_jax.settings import nearest, require

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of a TPU chip, from the system architecture pages of cloud.google.com/tpu."""

    kind: str  # jax's `device_kind`
    flops: float  # FLOP/s, bfloat16
    memory: float  # bytes of HBM
    bandwidth: float  # bytes/s of HBM
    links: float  # bytes/s that leave it over the interconnect: half of the bidirectional figure
    devices: int  # that jax compiles for, per chip
    pod: int  # chips on one interconnect


CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1.2e12, 300e9, 2, 4096),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 200e9, 1, 256),
    "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 600e9, 1, 8960),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1640e9, 400e9, 1, 256),
    "tpu7x": Chip("TPU7x", 2307e12, 192 * GIB, 7380e9, 600e9, 2, 9216),
}


def chip_of(topology: str) -> Chip:
    """The chip of a slice."""
    kind = topology.split(":")[0]
    require(
        kind in CHIPS,
        f"--topology={topology}: the chip must be one of {', '.join(CHIPS)}{nearest(kind, CHIPS)}",
    )
    return CHIPS[kind]


# The update's FLOPs over 6 N tokens: attention and what "full" rematerialisation computes again
# (compiled for v5e at 1024 + 1024 tokens).
UPDATE_FACTOR = 1.35


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What the model does not compute."""

    call_ratio: float = 0.3  # of the prompts; the cloud is asked once per prompt
    cloud_seconds: float = 10.0  # per call
    judge_seconds: float = 1e-3  # per response, on one core of the host
    chips_per_host: int = 4


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One step on `chips` chips; seconds are lower bounds."""

    chips: int
    prompts: int  # P: the config's, or one per chip and tensor group if that is more
    memory: float  # bytes per chip while sampling
    prefill: float
    decode: float
    decode_bound: str  # weights, cache or products
    update: float
    gathers: float  # weights and gradients on the interconnect, if nothing overlaps
    calls_per_second: float
    calls_at_once: float
    judge: float  # seconds, all cores of one host being one

    @property
    def step(self) -> float:
        """Seconds if the interconnect overlaps with computing and the cloud with the next part."""
        return self.prefill + self.decode + max(self.update, self.gathers)


def estimate(workload: Workload, chip: Chip, chips: int, assumed: Assumptions) -> Estimate:
    """The bounds of a step; beyond one prompt per chip the batch grows with the chips."""
    device, sampling, batch = workload.device, workload.sampling, workload.learning.batch
    G, S, T = sampling.group, sampling.prompt_tokens, sampling.response_tokens
    tensor = max(workload.mesh.tensor, 1)
    shards = max(chips // tensor, 1)
    P = max(batch.prompts, shards)
    N, item = count_params(device), device.compute.itemsize
    weights = N * item / tensor  # the sampler's copy on a chip
    per_token = 2 * device.layers * device.kv_heads * device.head_size * device.cache.itemsize
    per_token /= min(tensor, device.kv_heads)
    state = 3 * 4 * N / chips  # float32 weights and two moments
    prompts, rows = math.ceil(P / shards), math.ceil(P / shards) * G

    cache = per_token * (prompts * S + rows * T)
    read = per_token * (prompts * S + rows * T / 2)
    times = {
        "weights": weights / chip.bandwidth,
        "cache": read / chip.bandwidth,
        "products": 2 * N / tensor * rows / chip.flops,
    }
    reading = times["weights"] + times["cache"]
    decode_step = max(reading, times["products"])
    tokens = P * (S + G * T)
    # Per micro-batch: every weight gathered forward and backward, every gradient reduced.
    parts = batch.parts(G, "config.learning.batch")
    micro_batches = max(P // max(batch.micro_prompts, shards), 1) * parts
    gathers = 3 * micro_batches * weights / chip.links if shards > 1 else 0.0
    prefill = 2 * N * P * S / chips / chip.flops
    update = 6 * UPDATE_FACTOR * N * tokens / chips / chip.flops
    bounds = prefill + T * decode_step + max(update, gathers)
    calls = assumed.call_ratio * P / bounds
    hosts = max(chips // assumed.chips_per_host, 1)
    return Estimate(
        chips=chips,
        prompts=P,
        memory=state + weights + cache,
        prefill=prefill,
        decode=T * decode_step,
        decode_bound=max(times, key=times.get),
        update=update,
        gathers=gathers,
        calls_per_second=calls,
        calls_at_once=calls * assumed.cloud_seconds,
        judge=P * G * assumed.judge_seconds / hosts,
    )
