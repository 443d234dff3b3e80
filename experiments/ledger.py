"""Prints the cloud's account: `python -m experiments.ledger --path=runs/x/cloud.sqlite`."""

import itertools
import json
import sys
from typing import Any

import rich.console
import rich.table
from absl import app, flags

from offload_jax.cloud.ledger import account

PATH = flags.DEFINE_string("path", None, "The ledger, a SQLite file.")
JSON = flags.DEFINE_bool("json", False, "One JSON line per row instead of a table.")

_COLUMNS = {
    "model": str,
    "outcome": str,
    "attempts": "{:,}".format,
    "tokens": "{:,}".format,
    "dollars": lambda x: "unknown" if x is None else f"{x:.4f}",
    "estimated": "{:,}".format,
    "over": "{:,}".format,
    "seconds": "{:.2f}".format,
}


def main(argv: list[str]) -> None:
    """One row per run, model and outcome; a mistake is one sentence on stderr, status 2."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        rows = account(PATH.value)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    if JSON.value:
        for row in rows:
            print(json.dumps(row))
        return
    console = rich.console.Console()
    for run, own in itertools.groupby(rows, key=lambda row: row["run"]):
        console.print(run, highlight=False, soft_wrap=True)
        console.print(_table(list(own)))
    console.print(
        "tokens: prompt and response; seconds: mean per attempt;\n"
        "estimated: attempts booked at their worst case, as the cloud did not say more;\n"
        "over: attempts that took more tokens than were reserved for them."
    )


def _table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """One run's account."""
    table = rich.table.Table()
    for name, written in _COLUMNS.items():
        table.add_column(name, justify="left" if written is str else "right")
    for row in rows:
        row = {**row, "tokens": row["tokens"] + row["prompt_tokens"]}
        table.add_row(*(written(row[name]) for name, written in _COLUMNS.items()))
    table.add_section()
    total = {name: sum(row[name] or 0 for row in rows) for name in ("attempts", "dollars")}
    tokens = sum(row["tokens"] + row["prompt_tokens"] for row in rows)
    table.add_row(
        "", "all", f"{total['attempts']:,}", f"{tokens:,}", f"{total['dollars']:.4f}", "", "", ""
    )
    return table


if __name__ == "__main__":
    flags.mark_flags_as_required(["path"])
    app.run(main)
