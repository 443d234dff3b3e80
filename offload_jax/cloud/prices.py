"""What a call costs: from `genai-prices`, or from a table of one's own."""

import dataclasses
import importlib.metadata
import math

from offload_jax.settings import require


@dataclasses.dataclass(frozen=True)
class PriceConfig:
    """Dollars per million tokens."""

    input: float
    output: float
    cached_input: float | None = None  # of prompt tokens that the cloud had in its cache

    def __post_init__(self):
        for name in ("input", "output", "cached_input"):
            value = getattr(self, name)
            require(
                value is None or (value >= 0 and math.isfinite(value)),
                f"config.cloud.prices.{name} is {value}; it must be dollars per million tokens.",
            )


class Prices:
    """The price of a model, and where it comes from."""

    def __init__(self, model: str, base_url: str, own: PriceConfig | None = None):
        """`own` overrides the package's table."""
        self._model, self._base_url, self._own = model, base_url, own
        self.source: str | None = None  # stored with every attempt
        if own is not None:
            self.source = f"config {own.input}/{own.output} per million"
        elif self._by_package(0, 0, 0) is not None:
            self.source = f"genai-prices {importlib.metadata.version('genai-prices')}"

    @property
    def known(self) -> bool:
        """Whether there is a price at all."""
        return self.source is not None

    def dollars(self, prompt_tokens: int, tokens: int, cached_tokens: int = 0) -> float | None:
        """What these tokens cost; None where the price is unknown.

        Args:
            prompt_tokens: of the prompt, those in the cloud's cache included.
            tokens: of the response.
            cached_tokens: of the prompt's, those that were in the cloud's cache.
        """
        if self._own is None:
            return self._by_package(prompt_tokens, tokens, cached_tokens) if self.known else None
        cached = self._own.input if self._own.cached_input is None else self._own.cached_input
        fresh = prompt_tokens - cached_tokens
        return (fresh * self._own.input + cached_tokens * cached + tokens * self._own.output) / 1e6

    def _by_package(self, prompt_tokens: int, tokens: int, cached_tokens: int) -> float | None:
        try:
            from genai_prices import Usage, calc_price
        except ImportError:
            return None
        usage = Usage(
            input_tokens=prompt_tokens, output_tokens=tokens, cache_read_tokens=cached_tokens
        )
        try:
            # By the endpoint's own address: the same model costs something else elsewhere.
            price = calc_price(usage, model_ref=self._model, provider_api_url=self._base_url)
        except (LookupError, ValueError):
            return None
        return float(price.total_price)
