"""What answers take: seconds on the device and in the cloud, and dollars, by a stated model.

Tokens are counted; rates, latency and prices are assumptions of the config, so that records are
the same whenever and wherever they are made.
"""

import dataclasses
import math

from offload_jax.settings import require


@dataclasses.dataclass(frozen=True)
class UsageConfig:
    """Rates of a phone's 1-3B model, latency and list prices of a large reasoning model's API."""

    device_prompt_rate: float = 200.0  # prompt tokens per second
    device_rate: float = 20.0  # generated tokens per second
    cloud_latency: float = 1.0  # seconds to the first token
    cloud_rate: float = 40.0  # generated tokens per second
    cloud_prompt_price: float = 0.55  # dollars per million tokens
    cloud_price: float = 2.19  # dollars per million generated tokens

    def __post_init__(self):
        for name in ("device_prompt_rate", "device_rate", "cloud_rate"):
            value = getattr(self, name)
            require(
                0 < value < math.inf,
                f"config.evaluation.usage.{name} is {value}; it must be positive and finite.",
            )
        for name in ("cloud_latency", "cloud_prompt_price", "cloud_price"):
            value = getattr(self, name)
            require(
                0 <= value < math.inf,
                f"config.evaluation.usage.{name} is {value}; it must be finite and not negative.",
            )

    def device_seconds(self, prompt_tokens: int, tokens: int) -> float:
        """Time of the device's attempt."""
        return prompt_tokens / self.device_prompt_rate + tokens / self.device_rate

    def cloud_seconds(self, tokens: int) -> float:
        """Time until the cloud's whole answer is there."""
        return self.cloud_latency + tokens / self.cloud_rate

    def dollars(self, prompt_tokens: int, tokens: int) -> float:
        """What the cloud's answer costs."""
        return (prompt_tokens * self.cloud_prompt_price + tokens * self.cloud_price) / 1e6
