"""The results table, as data; and that data as markdown and as a table for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import rich.box
import rich.markup
import rich.table

from offload_jax.evaluation.metrics import (
    Estimate,
    Outcome,
    call_ratio,
    capped,
    cloud_only,
    conditional_accuracy,
    local_accuracy,
    mcnemar,
    offload_ratio,
    overall_accuracy,
    paired_difference,
    randomly_offloaded,
)
from offload_jax.evaluation.records import Columns, Record, columns, share_cloud

HEADER = ("", "overall", "conditional", "local", "call ratio", "offloaded", "n")
_NO_MEANING = "–"
_LABELS = {"gapg": "GAPG"}


@dataclass(frozen=True)
class Row:
    """One way of answering all test prompts; None is a cell that has no meaning for it."""

    name: str
    overall: Estimate
    conditional: Estimate | None
    local: Estimate | None
    call_ratio: Estimate | None
    offloaded: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Overall accuracy of one row minus another's, on the same prompts; p is McNemar's."""

    name: str
    estimate: Estimate
    p: float


@dataclass(frozen=True)
class Table:
    """Everything that is printed, and under which cap and seed it holds."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    cap: float
    seed: int
    degraded: int = 0  # prompts whose cloud failed, so that the device answered


def _row(
    name: str,
    outcome: Outcome,
    local: Estimate | None = None,
    calls: Estimate | None = None,
) -> Row:
    return Row(
        name=name,
        overall=overall_accuracy(outcome),
        conditional=conditional_accuracy(outcome),
        local=local,
        call_ratio=calls,
        offloaded=offload_ratio(outcome),
        n=outcome.prompt_ids.size,
    )


def _policy_row(name: str, results: Columns, outcome: Outcome) -> Row:
    return _row(name, outcome, local_accuracy(results), call_ratio(results))


def build_table(
    start: Sequence[Record], trained: Sequence[Record], cap: float, seed: int = 0
) -> Table:
    """The paper's table for one run, from the records of its two policies.

    Args:
        start: records of the policy that training started from.
        trained: records of the trained policy, on the same prompts.
        cap: largest share of prompts offloaded; both policies and random offloading obey it.
        seed: decides which calls survive the cap, and the bootstrap.

    Raises ValueError where the prompts differ, or where the cloud's answer to some prompt is in
    neither policy's records (random offloading and cloud only need all of them).
    """
    before, after = share_cloud(columns(start), columns(trained))
    name, start_name = (_LABELS.get(c.policy, c.policy) for c in (after, before))
    started, ended = capped(before, cap, seed), capped(after, cap, seed)
    rival = randomly_offloaded(before, cap, seed)
    return Table(
        rows=(
            _policy_row(start_name, before, started),
            _row(f"{start_name} + random offloading", rival, local_accuracy(before)),
            _policy_row(name, after, ended),
            _row("cloud only", cloud_only(after)),
        ),
        differences=tuple(
            Difference(
                f"{name} − {other}", paired_difference(ended, they, seed), mcnemar(ended, they)
            )
            for other, they in ((start_name, started), ("random offloading", rival))
        ),
        cap=cap,
        seed=seed,
        degraded=int(cloud_only(after).degraded.sum()),
    )


def build_tasks_table(records: Mapping[str, Sequence[Record]], cap: float, seed: int = 0) -> Table:
    """One policy on several tasks, a row for each; the cap holds within each task.

    Args:
        records: of every task, by its name.
        cap: largest share of a task's prompts offloaded.
        seed: decides which calls survive the cap.
    """
    rows, degraded = [], 0
    for name, own in records.items():
        results = columns(own)
        outcome = capped(results, cap, seed)
        rows.append(_policy_row(name, results, outcome))
        degraded += int(outcome.degraded.sum())
    return Table(rows=tuple(rows), differences=(), cap=cap, seed=seed, degraded=degraded)


# --- words ---


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return _NO_MEANING
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _points(estimate: Estimate) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    value, low, high = (
        round(100 * x, 1) + 0.0 for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def cells(row: Row) -> tuple[str, ...]:
    """A row's cells as text, in the order of `HEADER`."""
    estimates = (row.overall, row.conditional, row.local, row.call_ratio)
    return (row.name, *map(_percent, estimates), f"{100 * row.offloaded:.1f}", f"{row.n:,}")


def _difference_cells(difference: Difference) -> tuple[str, str, str]:
    return difference.name, _points(difference.estimate), _p(difference.p)


def _caption(table: Table) -> str:
    if not table.degraded:
        return _about(table)
    failed = f"The cloud failed for {table.degraded:,} prompts: there the device answered."
    return f"{_about(table)} {failed}"


def _about(table: Table) -> str:
    return (
        f"Percent of test prompts, with 95 % intervals (Wilson); calls capped at "
        f"{100 * table.cap:g} %, survivors drawn with seed {table.seed}; a call beyond the cap "
        f"counts as wrong."
    )


_DIFFERENCES = "difference in overall accuracy"
_DIFFERENCES_CAPTION = "Points, with 95 % intervals (paired bootstrap); p: McNemar's exact test."


def _markdown_line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |\n"


def _markdown_block(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = "|---" + "|---:" * (len(header) - 1) + "|\n"
    return _markdown_line(header) + rule + "".join(map(_markdown_line, body))


def markdown(table: Table) -> str:
    """The table as markdown text."""
    main = _markdown_block(HEADER, [cells(row) for row in table.rows])
    if not table.differences:
        return f"{main}\n{_caption(table)}\n"
    below = _markdown_block(
        (_DIFFERENCES, "points", "McNemar"), [_difference_cells(d) for d in table.differences]
    )
    return f"{main}\n{_caption(table)}\n\n{below}\n{_DIFFERENCES_CAPTION}\n"


def terminal(table: Table) -> tuple[rich.table.Table, ...]:
    """The same table for a terminal of 80 columns: the rows, and the differences if any."""
    below_header = (_DIFFERENCES, "points", "McNemar")
    # The interval goes below its estimate: on one line the table would need 120 columns.
    body = [[cell.replace(" [", "\n[") for cell in cells(row)] for row in table.rows]
    main = _rich(HEADER, body, _caption(table))
    if not table.differences:
        return (main,)
    below = [*map(_difference_cells, table.differences)]
    return main, _rich(below_header, below, _DIFFERENCES_CAPTION)


def _rich(header: Sequence[str], body: Sequence[Sequence[str]], caption: str) -> rich.table.Table:
    built = rich.table.Table(
        box=rich.box.SIMPLE_HEAD,
        caption=caption,
        caption_justify="left",
        padding=0,
        show_edge=False,
    )
    for i, title in enumerate(header):
        # Only names may wrap: half a number is worse than none.
        built.add_column(title, justify="right" if i else "left", no_wrap=i > 0)
    for row in body:
        built.add_row(*map(rich.markup.escape, row))
    return built
