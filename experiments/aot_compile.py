"""Compiles a step for a TPU slice without one: `python -m experiments.aot_compile --config=...`.

`--topology=v5e:8x8` names the slice; libtpu is needed (`pip install 'offload_jax[tpu]'`).
`--estimate` asks the cost model instead, for 1 to 10,000 chips of the topology's kind.
"""

import dataclasses
import json
import sys

import jax
import rich.console
import rich.table
from absl import app, flags
from ml_collections import config_flags

from experiments.flags import parser
from offload_jax.aot import (
    DoesNotFitError,
    Program,
    check,
    collective_rows,
    programs,
    topology,
    workload_of,
)
from offload_jax.scaling import GIB, Assumptions, Chip, Estimate, chip_of, estimate
from offload_jax.settings import require
from offload_jax.sharding import make_mesh

CONFIG = config_flags.DEFINE_config_file("config", "configs/math_llama32_3b.py", "The experiment.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:8x8", "The slice: kind:shape, as v5e:8x8.")
JSON = flags.DEFINE_bool("json", False, "One JSON object per program or estimate, no tables.")
ESTIMATE = flags.DEFINE_bool("estimate", False, "The cost model for 1 to 10,000 chips.")
COUNTS = (1, 4, 16, 64, 256, 1024, 4096, 10_000)


def main(argv: list[str]) -> None:
    """Prints what each program needs; mistakes in the settings are one sentence, status 2.

    Status 1: a program does not fit.
    """
    console = rich.console.Console(width=130)
    try:
        require(len(argv) == 1, f"unexpected argument {argv[-1]!r}")
        workload = workload_of(CONFIG.value)
        chip = chip_of(TOPOLOGY.value)
        if not ESTIMATE.value:
            jax.config.update("jax_platforms", "cpu")  # this machine's part in it
            mesh = make_mesh(workload.mesh, topology(TOPOLOGY.value))
            check(workload, mesh)
            compiled = programs(workload, mesh)
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    if ESTIMATE.value:
        rows = [estimate(workload, chip, chips, Assumptions()) for chips in COUNTS]
        if JSON.value:
            for row in rows:
                print(json.dumps({**dataclasses.asdict(row), "step": row.step}))
        else:
            console.print(estimate_table(rows, chip))
        return
    fits = True
    try:
        for program in compiled:
            capacity = chip.memory / chip.devices
            fits &= program.bytes <= capacity
            if JSON.value:
                print(json.dumps(as_json(program, capacity)), flush=True)
            else:
                for table in tables(program, capacity):
                    console.print(table)
    except DoesNotFitError as error:
        print(f"Does not fit into a chip of {TOPOLOGY.value}: {error}", file=sys.stderr)
        fits = False
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if fits else 1)


def as_json(program: Program, capacity: float) -> dict:
    """One program's figures, per chip."""
    return {
        "program": program.name,
        "compile_seconds": program.compile_seconds,
        "hbm_bytes": program.bytes,
        "hbm_capacity": capacity,
        "fits": program.bytes <= capacity,
        "memory": program.memory,
        "phases": [
            {
                "name": phase.name,
                "flops": phase.work.flops,
                "model_flops": phase.model_flops,
                "bytes": phase.work.bytes,
                "tokens": phase.tokens,
                "collectives": collective_rows(phase.work.collectives),
            }
            for phase in program.phases
        ],
    }


def tables(program: Program, capacity: float) -> list[rich.table.Table]:
    """The figures for people; all are per chip and per step."""
    verdict = "fits" if program.bytes <= capacity else "does not fit"
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in program.memory.items())
    work = rich.table.Table(
        title=f"{program.name}: {program.bytes / GIB:.2f} of {capacity / GIB:.2f} GiB, {verdict}"
        f" ({parts}); compiled in {program.compile_seconds:.0f} s"
    )
    for column in ("phase", "tokens of all chips", "TFLOP", "over 2 or 6 N tokens", "HBM GB"):
        work.add_column(column, justify="left" if column == "phase" else "right")
    moved = rich.table.Table(title=f"{program.name}: collectives")
    for column in ("phase", "kind", "loops around", "same in every turn", "operations", "runs",
                   "GB"):  # fmt: skip
        moved.add_column(column, justify="left" if column in ("phase", "kind") else "right")
    for phase in program.phases:
        work.add_row(
            phase.name,
            f"{phase.tokens:,}",
            f"{phase.work.flops / 1e12:.2f}",
            f"{phase.work.flops / phase.model_flops:.3f}",
            f"{phase.work.bytes / 1e9:.1f}",
        )
        for row in collective_rows(phase.work.collectives):
            moved.add_row(
                phase.name,
                row["kind"],
                str(row["loops_around"]),
                "yes" if row["same_in_every_turn"] else "",
                str(row["operations"]),
                f"{row['runs']:,}",
                f"{row['bytes'] / 1e9:.3f}",
            )
    return [work, moved]


def estimate_table(rows: list[Estimate], chip: Chip) -> rich.table.Table:
    """The cost model's figures for people."""
    table = rich.table.Table(title=f"lower bounds in seconds per step, {chip.kind}")
    for column in ("chips", "prompts", "GiB per chip", "prefill", "decode", "bound by", "update",
                   "interconnect", "step", "calls/s", "at once", "judging"):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        fits = "" if row.memory <= chip.memory else " (!)"
        table.add_row(
            f"{row.chips:,}",
            f"{row.prompts:,}",
            f"{row.memory / GIB:.1f}{fits}",
            *(f"{x:.2f}" for x in (row.prefill, row.decode)),
            row.decode_bound,
            *(f"{x:.2f}" for x in (row.update, row.gathers, row.step)),
            f"{row.calls_per_second:.1f}",
            f"{row.calls_at_once:.0f}",
            f"{row.judge:.3f}",
        )
    return table


if __name__ == "__main__":
    app.run(main, flags_parser=parser(CONFIG))
