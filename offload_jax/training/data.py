"""Which prompts a training step sees, with grain: a function of (seed, step) alone."""

import zlib
from collections.abc import Sequence

import grain

from offload_jax.tasks.task import Prompt


def training_batches(prompts: Sequence[Prompt], P: int, seed: int, stage: str) -> grain.MapDataset:
    """An endless random-access dataset; element `step` is the list of that step's P prompts.

    Every epoch is shuffled anew, by the seed and the stage ("start" or "post-training"). Indexed by
    step, so that a resumed run reads what the uninterrupted one would have read.
    """
    # Neighbouring seeds must not share an order, nor two stages of one seed: hence a hash.
    source = grain.MapDataset.source(prompts).seed(zlib.crc32(f"{seed}/{stage}".encode()))
    return source.shuffle().repeat().batch(P, batch_fn=list)
