"""Which prompts a training step sees, with grain: a function of (seed, step) alone."""

from collections.abc import Sequence

import grain

from offload_jax.tasks.task import Prompt


def training_batches(prompts: Sequence[Prompt], P: int, seed: int) -> grain.MapDataset:
    """An endless random-access dataset; element `step` is the list of that step's P prompts.

    Every epoch is shuffled anew, by the seed. Indexed by step, so that a resumed run reads what the
    uninterrupted one would have read.
    """
    source = grain.MapDataset.source(prompts).seed(seed)
    return source.shuffle().repeat().batch(P, batch_fn=list)
