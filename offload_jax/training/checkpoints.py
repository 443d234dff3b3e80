"""Checkpoints of the device LLM, with orbax: all that a later run needs, and nothing pickled.

A checkpoint holds the weights, the optimiser's state and the step; the random keys and the place
in the data follow from the step (see `offload_jax.sampling.rollout`, `offload_jax.training.data`).
Beside them lie the shape of the device LLM and its vocabulary, so that a checkpoint stands alone,
and a fingerprint of every array, so that damage is noticed.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from offload_jax.device import lora
from offload_jax.device.config import DeviceConfig, Dtype
from offload_jax.device.params import Params, abstract_params, param_shardings
from offload_jax.learning.update import TrainState
from offload_jax.pretrained.checkpoint import Pretrained
from offload_jax.settings import parse, require
from offload_jax.vocabulary import Vocabulary


class Checkpoints:
    """The checkpoints of one stage, in one folder; a killed save leaves no half checkpoint."""

    def __init__(self, folder: str | Path, keep: int | None = None):
        """`keep`: how many of the latest checkpoints stay on disk (None: all)."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self.folder = Path(folder).resolve()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        """The step of the latest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, config: DeviceConfig, vocabulary: Vocabulary):
        """Copies the state to the host, and writes it in the background.

        The checkpoint of `state.step` appears whole or not at all; a write that failed is raised by
        the next save, or by `close`.

        Of weights with adapters only the adapters are written: the others are the start's.
        """
        state = state.replace(params=lora.split(state.params)[1])
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            device=ocp.args.JsonSave(dataclasses.asdict(config)),
            vocabulary=ocp.args.JsonSave(vocabulary.to_json()),
            fingerprints=ocp.args.JsonSave(fingerprints(state)),
        )
        self._manager.save(int(state.step), args=items, force=True)

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The state of a step (default: the latest), in the shapes, dtypes and shardings of `like`.

        Raises:
            FileNotFoundError: there is no checkpoint of that step.
            ValueError: it is damaged, or of another shape.
        """
        self._manager.wait_until_finished()
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise FileNotFoundError(f"{self.folder} holds no checkpoint of step {step}.")
        frozen, trained = lora.split(like.params)
        saved = like.replace(params=trained)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, saved)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), fingerprints=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=items)
            state = restored["state"]
            check_fingerprints(state, restored["fingerprints"])
        except Exception as error:  # of what kind depends on what is damaged
            raise ValueError(
                f"{self.folder}/{step} cannot be restored: {_first_line(error)}. If it is damaged,"
                " or no checkpoint of this run, and not out of reach (memory, permissions), remove"
                " that folder to go on from the one before it."
            ) from None
        return state.replace(params={**frozen, **state.params})

    def close(self):
        """Waits for writes and releases the folder."""
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_policy(
    path: str | Path, mesh: Mesh | None = None, dtype: Dtype = "float32"
) -> tuple[Params, DeviceConfig, Vocabulary]:
    """The policy that lies at a path: a stage's checkpoints, a Hugging Face folder or a GGUF file.

    Args:
        path: where.
        mesh: what its weights are split over; None: the default device.
        dtype: of weights and activations; a stage's checkpoints have their own.

    Raises:
        ValueError: there is none of the three, or it is damaged or not implemented.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").exists():
        return load_policy(folder, mesh)
    pretrained = Pretrained(folder)
    dtypes = {"param_dtype": dtype, "compute_dtype": dtype}
    config = parse(DeviceConfig, {**pretrained.shape(), **dtypes})
    return pretrained.params(config, jax.random.key(0), mesh), config, pretrained.vocabulary()


def load_policy(
    folder: str | Path, mesh: Mesh | None = None
) -> tuple[Params, DeviceConfig, Vocabulary]:
    """The policy of a stage's latest checkpoint, without its optimiser.

    Where only adapters were trained, the weights they belong to are read from their own checkpoint.
    The weights are split over the mesh; without one they are on the default device.

    Raises:
        ValueError: the folder holds no checkpoint of ours, a damaged or a foreign one.
    """
    folder = Path(folder).resolve()
    require(folder.is_dir(), f"{folder} does not exist; a checkpoint is expected there.")
    handlers = {"state": ocp.PyTreeCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(read_only=True)
    items = ("state", "device", "vocabulary", "fingerprints")
    with ocp.CheckpointManager(
        folder, item_names=items, item_handlers=handlers, options=options
    ) as manager:
        step = manager.latest_step()
        require(step is not None, f"{folder} holds no checkpoint of a stage.")
        try:
            said = manager.restore(
                step,
                args=ocp.args.Composite(
                    device=ocp.args.JsonRestore(),
                    vocabulary=ocp.args.JsonRestore(),
                    fingerprints=ocp.args.JsonRestore(),
                ),
            )
            prints = said["fingerprints"]
            config = parse(DeviceConfig, _tuples(said["device"]), f"{folder}/{step}/device")
            vocabulary = Vocabulary.from_json(said["vocabulary"])
        except (KeyError, TypeError, FileNotFoundError) as error:
            raise ValueError(f"{folder}/{step} is not a checkpoint of a stage: {error}.") from None
        specs, places = abstract_params(config), _places(config, mesh)
        if config.lora:
            specs, places = ({"adapters": tree["adapters"]} for tree in (specs, places))
        like = {
            "params": jax.tree.map(
                lambda spec, place: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=place),
                specs,
                places,
            )
        }
        state = ocp.args.PyTreeRestore(
            like,
            restore_args=ocp.checkpoint_utils.construct_restore_args(like),
            partial_restore=True,
        )
        try:
            restored = manager.restore(step, args=ocp.args.Composite(state=state))["state"]
            check_fingerprints(restored, prints)
        except Exception as error:  # of what kind depends on what is damaged
            raise ValueError(
                f"{folder}/{step} cannot be read, damaged or out of reach: {_first_line(error)}."
            ) from None
        params = restored["params"]
    if config.lora:
        base = Pretrained(config.pretrained).params(config, jax.random.key(0), mesh)
        params = {**base, **params}
    return params, config, vocabulary


def fingerprints(arrays: Any) -> dict[str, int]:
    """A number for each array's bits, by its place in the tree, whatever its sharding.

    The sum, modulo 2^32, of all 32-bit words times odd factors that depend on their place, so that
    any one changed word changes it. orbax's files hold no check sums of their own.
    """
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
    return {name: int(value) for name, value in jax.device_get(_fingerprints(named)).items()}


@jax.jit
def _fingerprints(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _fingerprint(x) for name, x in arrays.items()}


def _fingerprint(x: jax.Array) -> jax.Array:
    word = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * size + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def check_fingerprints(arrays: Any, saved: Mapping[str, int]) -> None:
    """Raises a ValueError if an array is not bit for bit the one that was saved."""
    for name, value in fingerprints(arrays).items():
        require(saved.get(name) == value, f"{name} is not what was saved")


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}…"


def _places(config: DeviceConfig, mesh: Mesh | None) -> Any:
    """Where each weight goes."""
    if mesh is not None:
        return param_shardings(config, mesh)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: place, abstract_params(config))


def _tuples(value: Any) -> Any:
    """JSON has lists where settings have tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(value) if isinstance(value, list) else value
