"""Checkpoints of the device LLM, with orbax: all that a later run needs, and nothing pickled.

A checkpoint holds the weights, the optimiser's state and the step; the random keys and the place
in the data follow from the step (see `offload_jax.sampling.rollout`, `offload_jax.training.data`).
Beside them lie the shape of the device LLM and its tokenizer, so that a checkpoint stands alone.
"""

import dataclasses
import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import tokenizers

from offload_jax.device.config import DeviceConfig
from offload_jax.learning.update import TrainState


class Checkpoints:
    """The checkpoints of one stage, in one folder; a killed save leaves no half checkpoint."""

    def __init__(self, folder: str | Path, keep: int | None = None):
        """`keep`: how many of the latest checkpoints stay on disk (None: all)."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self.folder = Path(folder).resolve()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        """The step of the latest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, config: DeviceConfig, tokenizer: tokenizers.Tokenizer):
        """Writes the checkpoint of `state.step`; it appears whole or not at all."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            device=ocp.args.JsonSave(dataclasses.asdict(config)),
            tokenizer=ocp.args.JsonSave(json.loads(tokenizer.to_str())),
        )
        self._manager.save(int(state.step), args=items, force=True)

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The state of a step (default: the latest), in the shapes, dtypes and shardings of `like`.

        Raises:
            FileNotFoundError: there is no checkpoint of that step.
        """
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise FileNotFoundError(f"{self.folder} holds no checkpoint of step {step}.")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=items)["state"]

    def close(self):
        """Waits for writes and releases the folder."""
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
