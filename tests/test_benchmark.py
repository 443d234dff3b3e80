import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import benchmark as config
from experiments.benchmark import workload_of
from offload_jax.benchmark import Limits, Workload, _Bench
from offload_jax.settings import parse

ROOT = Path(__file__).parents[1]
TINY = [
    "--config.device.vocabulary=64", "--config.device.width=16", "--config.device.mlp=20",
    "--config.device.heads=2", "--config.device.kv_heads=1", "--config.device.head_size=8",
    "--config.sampling.group=2", "--config.sampling.prompt_tokens=8", "--config.device.layers=1",
    "--config.sampling.response_tokens=3", "--config.sampling.shrink=0.5",
]  # fmt: skip


def benchmark(*flags):
    variables = os.environ | {"XLA_FLAGS": os.environ["QUICK_XLA_FLAGS"]}
    command = [sys.executable, "-m", "experiments.benchmark", *flags]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_every_row_is_a_json_line_and_a_row_of_the_table(tmp_path):
    file = tmp_path / "rows.jsonl"
    status, printed, errors = benchmark("--quick", f"--jsonl={file}", *TINY)
    assert status == 0, errors
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    kinds = [row["name"].split(",")[0].split(" of ")[0] for row in rows]
    assert kinds.count("rollout") == 4 and kinds.count("products") == 3
    assert all(math.isfinite(row["seconds"]) and row["seconds"] > 0 for row in rows)
    assert all(row["share"] > 0 for row in rows if "share" in row)
    assert "tokens/s" in printed and "share of limit" in printed


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--config.batch.micro_prompts=3"], "config.batch: prompts (8) must be a multiple"),
        (["--config.mesh.cpu_devices=4"], "config.mesh"),
        (["--config.mesh.tensor=2", "--config.mesh.cpu_devices=2"], "heads"),
        (["--config=configs/nope.py"], "configs/nope.py"),
    ],
)
def test_a_mistake_is_one_sentence(flags, named):
    status, _, errors = benchmark(*flags)
    assert status == 2 and named in errors and "Traceback" not in errors


def test_an_experiments_config_is_a_workload_too():
    from configs import countdown_cpu

    workload = workload_of(countdown_cpu.get_config(), quick=False)
    assert workload.batch.prompts == 32 and workload.device.vocabulary == 160


def test_the_bound_is_the_larger_of_computing_and_reading():
    workload = parse(Workload, config.get_config())
    D, V, rows = 576, 49_152, 64
    layer = 2 * D + D * (9 + 3 + 3) * 64 + 9 * 64 * D + 3 * D * 1536
    numbers = 30 * layer + D
    fast_memory = Limits(matmul=1e11, bandwidth=1e30)
    fast_cores = Limits(matmul=1e30, bandwidth=1e10)
    steps = [rows, rows // 2]
    computing = _Bench(workload, None, None, fast_memory).rollout_bound(3, steps)
    flops = 2 * (numbers * 8 * 128 + D * V * 8) + 2 * (numbers + D * V) * sum(steps)
    assert computing == pytest.approx(flops / 1e11)
    reading = _Bench(workload, None, None, fast_cores).rollout_bound(3, steps)
    per_position = 30 * 2 * 3 * 64 * 4
    cached = per_position * (8 * 128 * 2 + 1 * rows // 2)
    assert reading == pytest.approx((3 * 4 * (numbers + D * V) + cached) / 1e10)
