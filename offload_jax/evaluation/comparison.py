"""Several methods, several seeds each, on the same test prompts: the comparison, as data and text.

Everything is computed from per-prompt records; definitions and sources: docs/metrics.md.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rich.box
import rich.markup
import rich.table
from jaxtyping import Bool, Float

from offload_jax.evaluation import blocks
from offload_jax.evaluation.blocks import NO_MEANING, Block, decimals
from offload_jax.evaluation.budgets import (
    aiq,
    apgr,
    auroc,
    budget_curve,
    calls_to_reach,
    gap_recovered,
    oracle_scores,
    routing_table,
)
from offload_jax.evaluation.metrics import (
    Estimate,
    Outcome,
    OverCap,
    conditional_accuracy,
    local_accuracy,
    mcnemar,
    offload_limit,
    offload_ratio,
    overall_accuracy,
    usage,
)
from offload_jax.evaluation.records import Columns, check_same_prompts
from offload_jax.evaluation.seeds import mean_and_deviation, pooled_difference, pooled_p


@dataclass(frozen=True)
class Entry:
    """One method with one seed on the test prompts.

    Attributes:
        results: the device's records, with the cloud's answer to every prompt.
        outcome: who answered which prompt, and how it went.
        scores: per prompt, high = offload first; None where the method has no score.
        attempt_first: the device tries before the decision. False: a router on the prompt alone,
            or the cloud alone, which spares the device's attempt on offloaded prompts.
        asked: the prompts for which the method asks, before the cap; None: those whose response
            calls.
    """

    results: Columns
    outcome: Outcome
    scores: Float[np.ndarray, " n"] | None
    attempt_first: bool
    asked: Bool[np.ndarray, " n"] | None = None

    @property
    def calls(self) -> Bool[np.ndarray, " n"]:
        """The prompts that are to go to the cloud, before the cap."""
        return self.results.called if self.asked is None else self.asked


@dataclass(frozen=True)
class Spread:
    """A number over seeds: mean, sample standard deviation (None for one seed), each seed's."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """Overall accuracy of the reference minus a method's, on the same prompts.

    Attributes:
        estimate: mean over seeds, with the interval over seeds and prompts.
        p: of the test over seeds, clustered by prompt.
        mcnemar: each seed's exact p-value.
    """

    estimate: Estimate
    p: float
    mcnemar: tuple[float, ...]


@dataclass(frozen=True)
class Method:
    """One row: its numbers by name. None has no meaning for it, or not for all of its seeds."""

    name: str
    seeds: int
    numbers: Mapping[str, Spread | None]
    difference: Difference | None


@dataclass(frozen=True)
class Comparison:
    """Everything that is printed, and under which cap and seed it holds.

    Attributes:
        methods: in the order of the table.
        reference: the method that the others are subtracted from.
        device, cloud: the two methods between which the recovered gap is measured.
        cap: largest share of prompts offloaded.
        seed: decided ties of scores, and the resampling.
        n: number of test prompts.
        degraded: most answers of a method and seed that the device gave because the cloud failed.
        over_cap: what became of a policy's own calls beyond the cap.
    """

    methods: tuple[Method, ...]
    reference: str
    device: str
    cloud: str
    cap: float
    seed: int
    n: int
    degraded: int = 0
    over_cap: OverCap = "wrong"


# --- numbers ---


def compare(
    methods: Mapping[str, Sequence[Entry]],
    reference: str,
    cap: float,
    seed: int,
    *,
    device: str,
    cloud: str,
    over_cap: OverCap = "wrong",
) -> Comparison:
    """All numbers of the comparison.

    Args:
        methods: per method, in the order of the table, one entry per seed; the same seeds in the
            same order for all. A method with a single entry (as the cloud alone) is set against
            every seed of the others.
        reference: the method that the others are subtracted from.
        cap: largest share of prompts offloaded; the oracle obeys it too.
        seed: decides ties of scores, and the resampling.
        device: the method whose local accuracy (mean over seeds) is where nothing of the gap to
            the cloud is recovered.
        cloud: the method whose overall accuracy is where all of it is. It has no device part:
            only its accuracy and its usage mean something.
        over_cap: with what the entries were made, for the caption.

    Raises ValueError at an unknown name, a method without entries, numbers of seeds that differ,
    prompts that differ, a cloud answer that is missing, or a score that is not finite.
    """
    _check(methods, {"reference": reference, "device": device, "cloud": cloud})
    floor = float(np.mean([local_accuracy(e.results).value for e in methods[device]]))
    ceiling = float(np.mean([overall_accuracy(e.outcome).value for e in methods[cloud]]))
    rows = []
    for name, entries in methods.items():
        numbers = [_numbers(e, cap, seed, floor, ceiling, name == cloud) for e in entries]
        spreads = {key: _spread([each[key] for each in numbers]) for key in numbers[0]}
        difference = None if name == reference else _difference(methods[reference], entries, seed)
        rows.append(Method(name, len(entries), spreads, difference))
    n = methods[reference][0].outcome.prompt_ids.size
    degraded = max(int(e.outcome.degraded.sum()) for entries in methods.values() for e in entries)
    return Comparison(tuple(rows), reference, device, cloud, cap, seed, n, degraded, over_cap)


def _check(methods: Mapping[str, Sequence[Entry]], named: Mapping[str, str]) -> None:
    for role, name in named.items():
        if name not in methods:
            raise ValueError(
                f"{role} must be one of the compared methods ({', '.join(methods)}), not {name!r}"
            )
    most = max(map(len, methods.values()))
    first = next((entries[0] for entries in methods.values() if len(entries)), None)
    for name, entries in methods.items():
        if len(entries) not in (1, most) or not len(entries):
            raise ValueError(
                f"{name} has {len(entries)} seeds where others have {most}: "
                f"a method needs all seeds, or exactly one entry"
            )
        for i, entry in enumerate(entries):
            try:
                _check_entry(entry, first)
            except ValueError as error:
                raise ValueError(f"{name}, entry {i + 1} of {len(entries)}: {error}") from None


def _check_entry(entry: Entry, first: Entry) -> None:
    check_same_prompts(entry.results, entry.outcome)
    check_same_prompts(entry.results, first.results)
    unknown = entry.results.prompt_ids[~entry.results.cloud_known & ~entry.results.cloud_failed]
    if unknown.size:
        raise ValueError(
            f"the cloud's answer to {unknown.size} prompts, such as prompt {unknown[0]}, is missing"
        )
    if entry.scores is not None and (
        np.shape(entry.scores) != entry.results.prompt_ids.shape
        or not np.isfinite(entry.scores).all()
    ):
        raise ValueError("the scores must be one finite number per prompt")


def _numbers(
    entry: Entry, cap: float, seed: int, floor: float, ceiling: float, is_cloud: bool
) -> dict[str, float | None]:
    """One seed's numbers by name; shares, and usage per prompt."""
    results, outcome = entry.results, entry.outcome
    overall = overall_accuracy(outcome).value
    conditional = conditional_accuracy(outcome)
    routing = routing_table(results, outcome)
    numbers = {
        "overall": overall,
        "conditional": conditional.value if conditional else None,
        "local": local_accuracy(results).value,
        "call_ratio": float(entry.calls.mean()),
        "offloaded": offload_ratio(outcome),
        "needless": routing.needless,
        "missed": routing.missed,
        "both_wrong": routing.both_wrong,
        "oracle_gap": _oracle(results, cap) - overall,
        "pgr": gap_recovered(overall, floor, ceiling),
        **_score_numbers(entry, seed),
    }
    if is_cloud:
        numbers = {key: numbers[key] if key in _CLOUD_NUMBERS else None for key in numbers}
    return numbers | usage(results, outcome, attempt_first=entry.attempt_first)


_CLOUD_NUMBERS = ("overall", "offloaded", "pgr")


def _score_numbers(entry: Entry, seed: int) -> dict[str, float | None]:
    """What a score is worth at every budget, and in finding the device's errors."""
    if entry.scores is None:
        return dict.fromkeys(("auroc", "apgr", "cpt_50", "cpt_80", "aiq"))
    curve = budget_curve(entry.results, entry.scores, seed)
    # A call is never correct: a policy's own P(call) would be praised for finding its own calls.
    answered = ~entry.results.called
    return {
        "auroc": auroc(entry.scores[answered], ~entry.results.device_correct[answered]),
        "apgr": apgr(curve),
        "cpt_50": calls_to_reach(curve, 0.5),
        "cpt_80": calls_to_reach(curve, 0.8),
        "aiq": aiq(curve),
    }


def _oracle(results: Columns, cap: float) -> float:
    """Overall accuracy of the best choice of at most floor(cap * n) prompts to offload."""
    n = results.prompt_ids.size
    gains = int((oracle_scores(results) > 0).sum())
    return (int(results.device_correct.sum()) + min(gains, offload_limit(n, cap))) / n


def _spread(values: Sequence[float | None]) -> Spread | None:
    """None unless every seed has the number: a mean over the seeds that do would flatter."""
    if any(value is None for value in values):
        return None
    return Spread(*mean_and_deviation(values), tuple(map(float, values)))


def _difference(reference: Sequence[Entry], entries: Sequence[Entry], seed: int) -> Difference:
    seeds = max(len(reference), len(entries))
    firsts, seconds = (
        [entry.outcome for entry in each] * (seeds // len(each)) for each in (reference, entries)
    )
    return Difference(
        estimate=pooled_difference(firsts, seconds, seed),
        p=pooled_p(firsts, seconds, seed),
        mcnemar=tuple(mcnemar(*pair) for pair in zip(firsts, seconds, strict=True)),
    )


# --- words ---

_percent = decimals(1, 100)
_MAIN = {
    "overall": ("overall", _percent),
    "conditional": ("conditional", _percent),
    "local": ("local", _percent),
    "call_ratio": ("call ratio", _percent),
    "offloaded": ("offloaded", _percent),
}
_ROUTING = {
    "needless": ("needless", _percent),
    "missed": ("missed", _percent),
    "both_wrong": ("both wrong", _percent),
    "auroc": ("AUROC", _percent),
    "pgr": ("PGR", _percent),
    "apgr": ("APGR", _percent),
    "cpt_50": ("CPT(50 %)", _percent),
    "cpt_80": ("CPT(80 %)", _percent),
    "aiq": ("AIQ", _percent),
    "oracle_gap": ("gap to oracle", _percent),
}
_USAGE = {
    "device_tokens": ("device tokens", decimals(1)),
    "cloud_tokens": ("cloud tokens", decimals(1)),
    "device_seconds": ("device seconds", decimals(2)),
    "cloud_seconds": ("cloud seconds", decimals(2)),
    "seconds": ("seconds", decimals(2)),
    "dollars": ("dollars per 1,000 prompts", decimals(3, 1000)),
}


def _cells(method: Method, columns: Mapping[str, tuple[str, Callable[[float], str]]]):
    for key, (_, written) in columns.items():
        spread = method.numbers[key]
        if spread is None:
            yield NO_MEANING
        elif spread.deviation is None:
            yield written(spread.mean)
        else:
            yield f"{written(spread.mean)} ± {written(spread.deviation)}"


def _block(comparison: Comparison, columns, caption: str) -> Block:
    return Block(
        header=("", *(title for title, _ in columns.values())),
        body=tuple((method.name, *_cells(method, columns)) for method in comparison.methods),
        caption=caption,
    )


def points(estimate: Estimate) -> str:
    """A difference of shares with its interval, in points."""
    value, low, high = (
        f"{round(100 * x, 1) + 0.0:+.1f}" for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]".replace("-", "−")


def _difference_cells(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return NO_MEANING, NO_MEANING
    p = difference.p
    return points(difference.estimate), "< 0.001" if p < 0.001 else f"{p:.3f}"


def _seeds(comparison: Comparison) -> str:
    most = max(method.seeds for method in comparison.methods)
    single = [method.name for method in comparison.methods if method.seeds < most]
    if most == 1:
        return "one seed"
    return f"{most} seeds" + (f" ({', '.join(single)}: one)" if single else "")


def _main(comparison: Comparison) -> Block:
    block = _block(comparison, _MAIN, "")
    extra = [_difference_cells(method.difference) for method in comparison.methods]
    reference = comparison.reference
    return Block(
        header=(*block.header, f"{reference} − method", "p"),
        body=tuple((*row, *more) for row, more in zip(block.body, extra, strict=True)),
        caption=(
            f"Percent of n = {comparison.n:,} test prompts, {_seeds(comparison)}; calls capped at "
            f"{100 * comparison.cap:g} %. {_OVER_CAP[comparison.over_cap]}; the call ratio is "
            f"before the cap. In rows of routers, thresholds and dials the device answers what is "
            f"refused. ±: sample standard deviation over seeds. {reference} − method: in "
            f"overall accuracy, in points; brackets: 95 % interval (bootstrap over seeds and "
            f"prompts); p: sign-flip test clustered by prompt, with one seed McNemar's exact test."
            + _degraded(comparison)
        ),
    )


_OVER_CAP = {
    "wrong": "A response that calls counts as wrong where the cap keeps it from the cloud",
    "device": "A call that the cap keeps from the cloud is taken back, and the device answers",
}


def _degraded(comparison: Comparison) -> str:
    if not comparison.degraded:
        return ""
    return f" The cloud failed: up to {comparison.degraded:,} answers of a row are the device's."


def _routing(comparison: Comparison) -> Block:
    caption = (
        f"Percent, n = {comparison.n:,}, {_seeds(comparison)}, cap {100 * comparison.cap:g} %, "
        f"seed {comparison.seed}; ±: sample standard deviation over seeds. Needless: offloaded, "
        f"though the device was right (a response that calls is no answer, unless calls are "
        f"taken back). Missed: retained, though only the cloud was right. Both wrong: neither was "
        f"right. AUROC: the score finds the errors among the device's answers. PGR: share "
        f"recovered of the gap between {comparison.device} (local) and {comparison.cloud}; APGR: "
        f"its mean over all budgets, between the ends of the method's own curve; CPT(x): calls "
        f"to recover x of the gap between those ends; AIQ: area under the hull of accuracy "
        f"against calls. Gap to oracle: overall accuracy lost to the best offloading of the "
        f"same records under the cap. –: no meaning, or not for every seed."
    )
    return _block(comparison, _ROUTING, caption)


def _usage_block(comparison: Comparison) -> Block:
    caption = (
        f"Per test prompt (n = {comparison.n:,}), {_seeds(comparison)}, cap "
        f"{100 * comparison.cap:g} %, seed {comparison.seed}; ±: sample standard deviation over "
        f"seeds. An offloaded prompt costs the device's attempt too, unless the router decides "
        f"on the prompt alone. Tokens are counted; seconds and dollars are the cloud's own where "
        f"it tells them, else reckoned with config.evaluation.usage from the tokens of its text: "
        f"an oracle's is the bare answer, so that a reasoning model's would cost more. –: not "
        f"known."
    )
    return _block(comparison, _USAGE, caption)


def _blocks(comparison: Comparison) -> tuple[Block, ...]:
    return _main(comparison), _routing(comparison), _usage_block(comparison)


def markdown(comparison: Comparison) -> str:
    """The main table, the routing table and the usage table as markdown, captions below."""
    return "\n".join(map(blocks.markdown, _blocks(comparison)))


def latex(comparison: Comparison) -> str:
    """The same three tables for LaTeX with `booktabs` and `graphicx`, as wide as the text."""
    return "\n".join(map(blocks.latex, _blocks(comparison)))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All numbers, seed by seed, as a plain dictionary: shares, not percent; None: no meaning."""
    plain = dataclasses.asdict(comparison)
    for method in plain["methods"]:
        if method["difference"]:
            method["difference"] |= method["difference"].pop("estimate")
    return _plain(plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


_ONLY_ON_PAPER = ("conditional", "offloaded", "p")


def terminal(comparison: Comparison) -> rich.table.Table:
    """The main table for a terminal of 100 columns."""
    block = _main(comparison)
    built = rich.table.Table(
        box=rich.box.SIMPLE_HEAD,
        caption=block.caption,
        caption_justify="left",
        padding=0,
        show_edge=False,
    )
    # Only what decides fits into a terminal; the rest is in table.md.
    shown = [i for i, title in enumerate(block.header) if title not in _ONLY_ON_PAPER]
    for i in shown:
        # Only names may wrap: half a number is worse than none.
        title = rich.markup.escape(block.header[i])
        built.add_column(title, justify="right" if i else "left", no_wrap=i > 0)
    for row in block.body:
        # The interval goes below its estimate: on one line the table would be too wide.
        built.add_row(*(rich.markup.escape(row[i].replace(" [", "\n[")) for i in shown))
    return built
