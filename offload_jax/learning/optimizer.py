"""AdamW with schedule and clipping, from optax."""

import dataclasses
import functools
from typing import Literal

import optax

from offload_jax.device.config import Dtype
from offload_jax.settings import require


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101); the paper does not name its optimiser."""

    rate: float
    schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up; cosine ends at 0
    warmup_steps: int = 0
    clip: float = 1.0  # of the global gradient norm
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    moment_dtype: Dtype | None = None  # of the first moment; None: the weights', as the second's

    def __post_init__(self):
        require(self.rate > 0, f"rate is {self.rate}; it must be positive.")
        require(self.clip > 0, f"clip is {self.clip}; it must be positive.")
        require(self.warmup_steps >= 0, "warmup_steps must not be negative.")
        require(self.weight_decay >= 0, "weight_decay must not be negative.")
        require(self.epsilon > 0, "epsilon must be positive.")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} is {value}; it must be in [0, 1).")


@functools.cache  # one object per setting, so that a second run finds its programs compiled
def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of `steps` updates."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mu_dtype=config.moment_dtype,
        ),
    )


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant or a cosine to zero at `steps`."""
    if config.schedule == "constant":
        after = optax.constant_schedule(config.rate)
    else:
        after = optax.cosine_decay_schedule(config.rate, max(steps - config.warmup_steps, 1))
    warmup = optax.linear_schedule(0.0, config.rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])
