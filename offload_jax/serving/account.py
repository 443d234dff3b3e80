"""What the service has done since it began, for `/account` and `/metrics`."""

import dataclasses
from collections import Counter
from typing import Any

from offload_jax.serving.pair import Receipt


@dataclasses.dataclass
class Account:
    """Counts; they belong to the event loop's thread.

    Attributes:
        requests: by the status of their response.
        left: clients that did not wait for their answer.
        served: answers by who gave them.
        called: answers whose decision was to call.
        degraded: by reason, answers of the device in place of the cloud, and refusals to give one.
        cached: answers of the cloud that were there already.
        tokens: by side and kind.
        dollars: of the answers whose price is known.
        unpriced: answers of the cloud without a known price.
        seconds: waited, on the device, and for the cloud.
    """

    requests: Counter = dataclasses.field(default_factory=Counter)
    left: int = 0
    served: Counter = dataclasses.field(default_factory=Counter)
    called: int = 0
    degraded: Counter = dataclasses.field(default_factory=Counter)
    cached: int = 0
    tokens: Counter = dataclasses.field(default_factory=Counter)
    dollars: float = 0.0
    unpriced: int = 0
    seconds: Counter = dataclasses.field(default_factory=Counter)

    def add(self, receipt: Receipt, answered: bool = True) -> None:
        """Books a receipt; `answered`: the client got an answer with it, not an error."""
        self.served[receipt.served_by if answered else "nobody"] += 1
        self.called += receipt.called
        self.cached += receipt.cached
        if receipt.degraded:
            self.degraded[receipt.reason] += 1
        for side in ("device", "cloud"):
            for kind in ("prompt", "completion"):
                tokens = getattr(receipt, f"{side}_{kind}_tokens") or 0
                self.tokens[side, kind] += 0 if receipt.cached and side == "cloud" else tokens
        self.unpriced += receipt.cost is None
        self.dollars += receipt.cost or 0.0
        self.seconds["waited"] += receipt.waited
        self.seconds["device"] += receipt.device_seconds
        self.seconds["cloud"] += receipt.cloud_seconds or 0.0

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        requests = {str(status): count for status, count in self.requests.items()}
        tokens = {f"{side}_{kind}": count for (side, kind), count in self.tokens.items()}
        return {**vars(self), "requests": requests, "tokens": tokens}

    def prometheus(self, under_way: int, healthy: bool) -> str:
        """All of it in Prometheus' text format, with what goes on now."""
        return "\n".join(
            [
                *_family("requests_total", "counter", "status", self.requests),
                *_family("left_total", "counter", None, {None: self.left}),
                *_family("answers_total", "counter", "served_by", self.served),
                *_family("calls_total", "counter", None, {None: self.called}),
                *_family("degraded_total", "counter", "reason", self.degraded),
                *_family("cached_total", "counter", None, {None: self.cached}),
                *_family("tokens_total", "counter", ("side", "kind"), self.tokens),
                *_family("dollars_total", "counter", None, {None: self.dollars}),
                *_family("unpriced_total", "counter", None, {None: self.unpriced}),
                *_family("seconds_total", "counter", "part", self.seconds),
                *_family("requests_under_way", "gauge", None, {None: under_way}),
                *_family("engine_healthy", "gauge", None, {None: int(healthy)}),
                "",
            ]
        )


def _family(name: str, kind: str, labels: str | tuple[str, ...] | None, values: dict) -> list[str]:
    """The lines of one metric. Label values are words of ours: nothing in them needs escaping."""
    lines = [f"# TYPE offload_{name} {kind}"]
    for key, value in values.items():
        pairs = () if labels is None else zip(_tuple(labels), _tuple(key), strict=True)
        said = ",".join(f'{label}="{of}"' for label, of in pairs)
        lines.append(f"offload_{name}{f'{{{said}}}' if said else ''} {value}")
    return lines


def _tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)
