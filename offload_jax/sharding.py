"""Mesh and logical-axis rules: the only place that knows a mesh axis by name."""

import dataclasses
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from offload_jax.settings import require

Use = Literal["training", "rollout"]

# Which mesh axes split a logical axis, by use. Axes that are not listed are never split.
_COMPUTE: dict[str, tuple[str, ...]] = {
    "prompts": ("data", "fsdp"),
    "vocabulary": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}
RULES: dict[Use, dict[str, tuple[str, ...]]] = {
    # Weights, gradient and optimiser while training: spread over all of fsdp, and gathered one
    # layer at a time (`gathered`).
    "training": {**_COMPUTE, "width": ("fsdp",)},
    # The sampler's weights: gathered once per rollout, since every token needs all of them.
    "rollout": _COMPUTE,
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1: all devices that are left."""

    data: int = -1  # copies of the weights, each with its share of the prompts
    fsdp: int = 1  # weights split along the width, prompts split too
    tensor: int = 1  # heads, MLP and vocabulary split
    cpu_devices: int = 1  # without an accelerator: devices that the CPU is split into

    def __post_init__(self):
        for name, size in self.axes.items():
            require(size == -1 or size >= 1, f"config.mesh.{name} is {size}; use -1 or at least 1.")
        require(list(self.axes.values()).count(-1) <= 1, "Only one axis of config.mesh may be -1.")
        require(self.cpu_devices >= 1, "config.mesh.cpu_devices must be at least 1.")

    @property
    def axes(self) -> dict[str, int]:
        """Sizes by axis name."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}


def prepare_devices(config: MeshConfig) -> None:
    """Tells XLA how to use the devices; to be called before jax is used.

    The CPU, if it is what jax will run on, is split into `config.cpu_devices` devices: one device
    per core decodes up to twice as fast as one device with both, since small operations run side by
    side. TPUs: see `prepare_tpus`. Flags of XLA that are given for the same win.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    prepare_tpus()


def prepare_tpus() -> None:
    """Keeps TPU's compiler from turning products with gathered weights into rings of smaller ones.

    With one prompt per chip and micro-batch it would split them by tokens, and some of the work is
    then done more than once: Qwen2.5-1.5B's update on 16 chips has 24 % more FLOPs
    (docs/scaling.md). To be called before libtpu is loaded.
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if "windowed_einsum" not in given:
        option = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"  # none is that large
        os.environ["LIBTPU_INIT_ARGS"] = f"{given} {option}".strip()


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over `devices` (default: all of them).

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.axes
    fixed = math.prod(size for size in sizes.values() if size != -1)
    rest = len(devices) // fixed
    shape = {name: rest if size == -1 else size for name, size in sizes.items()}
    require(
        math.prod(shape.values()) == len(devices),
        f"config.mesh {sizes} does not fit {len(devices)} device(s): the product must be that.",
    )
    return jax.make_mesh(
        tuple(shape.values()), tuple(shape), (AxisType.Auto,) * len(shape), devices=devices
    )


def prompt_shards(mesh: Mesh) -> int:
    """Into how many parts the prompts of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in _COMPUTE["prompts"])


def shards_in_context(prompts: int) -> int:
    """Into how many parts `constrain` splits an axis of so many prompts, inside jit."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in _COMPUTE["prompts"])
    return shards if prompts % shards == 0 else 1


def sharding_of(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int], use: Use = "training"
) -> NamedSharding:
    """The sharding of one array.

    Key/value heads fewer than the tensor axis are replicated (multi-query attention); any other
    logical axis must divide.

    Raises:
        ValueError: a dimension is not divisible by the mesh axes that split it, or two dimensions
            are split by the same mesh axis.
    """
    parts = _parts(axes, use)
    for i, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        ways = math.prod(mesh.shape[name] for name in parts[i] or ())
        if axis == "kv_heads" and size % ways:
            parts[i] = None
            continue
        require(
            size % ways == 0,
            f"The logical axis '{axis}' of size {size} is not divisible by the {ways} parts that"
            f" config.mesh gives it ({' x '.join(parts[i] or ())}).",
        )
    return NamedSharding(mesh, PartitionSpec(*parts))


def _parts(axes: Sequence[str | None], use: Use) -> list[tuple[str, ...] | None]:
    """The mesh axes of each dimension; raises ValueError where two claim the same one."""
    parts, owner = [RULES[use].get(axis) for axis in axes], {}
    for axis, part in zip(axes, parts, strict=True):
        for name in part or ():
            require(
                name not in owner,
                f"The logical axes '{owner.get(name)}' and '{axis}' of one array are both split by"
                f" config.mesh.{name}.",
            )
            owner[name] = axis
    return parts


def constrain(x: jax.Array, *axes: str | None, use: Use = "training") -> jax.Array:
    """Pins the sharding of an array inside jit, by logical axes; on every platform.

    `axes` name the leading dimensions. Dimensions that do not divide stay unsplit: XLA would pad
    them. Without a mesh in context (a unit test of a pure function) there is nothing to pin.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    parts = [
        part if part and x.shape[i] % math.prod(mesh.shape[name] for name in part) == 0 else None
        for i, part in enumerate(_parts(axes, use))
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(weight: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A weight of the training state in the rollout's sharding, for the time of its use.

    Its gradient is reduced right into the shards of the training state. Without that XLA may sum
    it in full on every device.
    """
    return constrain(weight, *axes, use="rollout")


gathered.defvjp(
    lambda weight, axes: (gathered(weight, axes), None),
    lambda axes, _, gradient: (constrain(gradient, *axes, use="training"),),
)


def place(mesh: Mesh, tree: Any, *axes: str | None) -> Any:
    """Puts host arrays on the mesh; `axes` name their leading dimensions, the rest is unsplit.

    Of several processes each must have the whole arrays, and puts its devices' parts.
    """

    def put(x: np.ndarray) -> jax.Array:
        named = axes[: np.ndim(x)]
        padded = named + (None,) * (np.ndim(x) - len(named))
        sharding = sharding_of(mesh, padded, np.shape(x))
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(np.shape(x), sharding, lambda part: np.asarray(x)[part])

    return jax.tree.map(put, tree)
