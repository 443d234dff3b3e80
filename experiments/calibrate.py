"""Sets the dial: `python -m experiments.calibrate --records=RECORDS --call_ratio=0.3 --to=FILE`.

From one policy's records, best of validation prompts, to the threshold on P(call) for a wanted
share of calls, with what to expect of it. The file is what `experiments.serve` takes as
`--config.threshold_file`.
"""

import dataclasses
import sys
from pathlib import Path

import rich.console
import rich.table
from absl import app, flags

from offload_jax.evaluation.calibration import Calibration, calibration
from offload_jax.evaluation.metrics import Estimate
from offload_jax.evaluation.records import read_records
from offload_jax.files import write_object

RECORDS = flags.DEFINE_string("records", None, "Records of one policy, e.g. gapg.jsonl of a run.")
CALL_RATIO = flags.DEFINE_float("call_ratio", None, "Share of questions that may call.", 0.0, 1.0)
TO = flags.DEFINE_string("to", None, "Where to write the threshold, as JSON.")
SEED = flags.DEFINE_integer("seed", 0, "Breaks ties between equal scores.")


def main(argv: list[str]) -> None:
    """Prints the threshold; a mistake is one sentence on stderr, status 2."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        found = calibration(read_records(RECORDS.value), CALL_RATIO.value, SEED.value)
        if TO.value is not None:
            write(Path(TO.value), found)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    console = rich.console.Console()
    console.print(_table(found))
    console.print(f"--config.threshold={found.threshold!r}", highlight=False)


def write(path: Path, found: Calibration) -> None:
    """The threshold and where it comes from."""
    said = {**dataclasses.asdict(found), "records": RECORDS.value, "wanted": CALL_RATIO.value}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_object(path, said)


def _table(found: Calibration) -> rich.table.Table:
    table = rich.table.Table(title=f"{found.prompts:,} prompts; percent, 95 % Wilson intervals")
    for name in ("", "expected", "interval"):
        table.add_column(name, justify="left" if name == "" else "right")
    for name, estimate in (
        ("call ratio", found.call_ratio),
        ("accuracy", found.accuracy),
        ("accuracy with the cloud down", found.cloud_down),
    ):
        table.add_row(name, f"{100 * estimate.value:.1f}", _interval(estimate))
    return table


def _interval(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.1f} – {100 * estimate.high:.1f}"


if __name__ == "__main__":
    flags.mark_flags_as_required(["records", "call_ratio"])
    app.run(main)
