"""Measures speed: `python -m experiments.benchmark [--config=configs/benchmark.py] [--quick]`.

`--config` takes a workload (configs/benchmark.py) or the config of an experiment that has the
model's shape. One JSON line per row goes to stdout as it is measured, with `--jsonl=FILE` into that
file instead; then comes the table.
"""

import json
import sys
from pathlib import Path

import jax
import rich.console
import rich.table
from absl import app, flags
from ml_collections import config_flags

from experiments.flags import parser
from offload_jax.aot import NO_CHECKPOINT
from offload_jax.benchmark import Row, Workload, benchmark, check_shards
from offload_jax.device.params import param_shardings
from offload_jax.settings import parse, require
from offload_jax.sharding import make_mesh, prepare_devices, prompt_shards

CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/benchmark.py", "The workload, or an experiment."
)
QUICK = flags.DEFINE_bool("quick", False, "Under a minute: two layers, fewer and shorter rows.")
JSONL = flags.DEFINE_string("jsonl", None, "Where the JSON lines go, instead of stdout.")


def main(argv: list[str]) -> None:
    """Measures and prints; a mistake in the settings is one sentence on stderr, status 2."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        workload = workload_of(CONFIG.value, QUICK.value)
        prepare_devices(workload.mesh)
        mesh = make_mesh(workload.mesh)
        check_shards(workload, prompt_shards(mesh))
        param_shardings(workload.device, mesh)  # raises where a weight does not divide
        if JSONL.value:
            Path(JSONL.value).write_text("")
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    rows = []
    for row in benchmark(workload, mesh):
        row |= {"device": mesh.devices.flat[0].device_kind, "devices": mesh.size}
        line = json.dumps({k: float(v) if hasattr(v, "item") else v for k, v in row.items()})
        if JSONL.value:
            with Path(JSONL.value).open("a") as file:
                file.write(line + "\n")
        else:
            print(line, flush=True)
        rows.append(row)
    rich.console.Console(width=150).print(table(rows))


def workload_of(config, quick: bool) -> Workload:
    """The workload of a config; of an experiment, what concerns sampling and updates."""
    config = config.copy_and_resolve_references()
    if "learning" in config:
        sections = {name: config[name] for name in ("device", "sampling", "mesh")}
        sections["batch"] = config.learning.batch
    else:
        sections = dict(config.items())
    for name in ("device", "sampling", "batch"):
        require(name in sections, f"config.{name} is missing: --config is no workload.")
    require(sections["device"].get("pretrained") is None, NO_CHECKPOINT)
    if quick:
        batch, sampling = sections["batch"], sections["sampling"]
        sections["device"].layers = min(sections["device"].layers, 2)
        batch.prompts = batch.micro_prompts * 2
        sampling.update({"response_tokens": min(sampling.response_tokens, 8), "shrink": 0.5})
    return parse(Workload, sections)


def table(rows: list[Row]) -> rich.table.Table:
    """The rows for people."""
    result = rich.table.Table(title=f"jax {jax.__version__}, {rows[0]['device']}")
    for column in ("measurement", "seconds", "throughput", "share of limit", "peak memory",
                   "compilation", "also"):  # fmt: skip
        result.add_column(column, justify="left" if column in ("measurement", "also") else "right")
    for row in rows:
        also = []
        if "growth_beyond_cache" in row:
            also.append(f"{row['growth_beyond_cache']:+.0%} per step beyond the longer cache")
        if "of_needed" in row:
            also.append(f"{row['of_needed']:.2f} x the work needed")
        if "of_proportional" in row:
            also.append(f"{row['of_proportional']:.2f} x its share of the whole")
        if "memory_of_state" in row:
            also.append(f"{row['memory_of_state']:.2f} x weights, gradients, optimiser")
        result.add_row(
            row["name"],
            f"{row['seconds']:.3f}",
            _throughput(row),
            f"{row['share']:.0%}" if "share" in row else "",
            f"{row['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in row else "",
            f"{row['compile_seconds']:.1f} s" if "compile_seconds" in row else "",
            "; ".join(also),
        )
    return result


def _throughput(row: Row) -> str:
    units = {"gflops": "GFLOP/s", "gb_per_second": "GB/s", "tokens_per_second": "tokens/s"}
    return "".join(f"{row[key]:.0f} {unit}" for key, unit in units.items() if key in row)


if __name__ == "__main__":
    app.run(main, flags_parser=parser(CONFIG))
