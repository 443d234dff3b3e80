import subprocess
import sys
from pathlib import Path

import pytest

from offload_jax.evaluation import metrics
from offload_jax.evaluation.records import columns, read_records

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gapg_beats_its_start_and_random_offloading_at_the_same_cap(tmp_path, seed):
    command = [sys.executable, "-m", "experiments.launch", f"--workdir={tmp_path}"]
    command += ["--config=configs/countdown_cpu.py", f"--config.seed={seed}"]
    subprocess.run(command, cwd=ROOT, check=True)
    start, end = (
        columns(read_records(tmp_path / "records" / f"{policy}.jsonl"))
        for policy in ("start", "gapg")
    )
    assert start.prompt_ids.size >= 1000
    before, after = (metrics.capped(policy, 0.3, seed) for policy in (start, end))
    random = metrics.randomly_offloaded(start, 0.3, seed)
    assert metrics.paired_difference(after, before).value >= 0.15
    assert metrics.paired_difference(after, random).low > 0
