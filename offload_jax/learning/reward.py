"""The hierarchical reward: solving is worth more than a correct call, which is worth something."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.judging import Judgement
from offload_jax.settings import require


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The paper's alphas, with answer >= call >= format >= 0; its sweep goes to both ends."""

    answer: float = 1.0  # alpha_a: the device's own answer is correct
    call: float = 0.3  # alpha_c: it called, the cloud's answer is correct; 0: accuracy
    format: float = 0.0  # alpha_f: the format term of the paper's first version; 0: without it

    def __post_init__(self):
        require(
            math.inf > self.answer >= self.call >= self.format >= 0 and self.answer > 0,
            "config.learning.reward must satisfy answer >= call >= format >= 0, answer > 0; it has"
            f" answer {self.answer}, call {self.call}, format {self.format}.",
        )


def hierarchical_reward(judgement: Judgement, config: RewardConfig) -> Float[Array, "P G"]:
    """Rewards of the responses (arXiv 2509.24050, v3; with `format` > 0 that of v1).

    - alpha_a if the device's own answer is correct (v1: + alpha_f if well formatted),
    - alpha_c if it called and the cloud's answer is correct,
    - otherwise 0 (v1: alpha_f if it answered wrongly but well formatted).
    """
    well_formed = config.format * (judgement.formatted & ~judgement.called)
    solved = judgement.device_correct * config.answer + well_formed
    call_solved = judgement.called & judgement.cloud_correct[:, None]
    return jnp.where(judgement.called, call_solved * config.call, solved).astype(jnp.float32)
