"""The whole job on published mathematical problems, from files and a checkpoint."""

import io

import pytest
import rich.console

from offload_jax.evaluation.records import read_records
from offload_jax.training.experiment import from_config
from offload_jax.training.run import run
from tests.pretrained.folders import write_checkpoint
from tests.tasks.math.files import write_all

BATCH = {"prompts": 8, "micro_prompts": 8, "length_buckets": 1}
OPTIMIZER = {
    "rate": 1e-3, "schedule": "constant", "warmup_steps": 0, "clip": 1.0, "weight_decay": 0.0,
    "b1": 0.9, "b2": 0.999, "epsilon": 1e-8,
}  # fmt: skip


def config(folder, **changes):
    evaluation = {"every": 1, "validation_prompts": 4, "test_prompts": 8, "cap": 0.3, "batch": 8}
    return {
        "seed": 0,
        "task": {"name": "math", "train": "math_lighteval", "test": "math500",
                 "files": str(folder / "files"), "validation": 4, "workers": 1},
        "device": {"pretrained": str(folder / "model")},
        "cloud": {"kind": "oracle", "accuracy": 1.0, "seed": 0},
        "sampling": {"group": 2, "prompt_tokens": 96, "response_tokens": 8, "cache_tokens": 8},
        "start": {"steps": 0, "batch": BATCH, "optimizer": OPTIMIZER, "traces": {"kind": "math"}},
        "learning": {"steps": 1, "batch": BATCH, "optimizer": OPTIMIZER,
                     "filter": {"enabled": False}},
        "evaluation": evaluation | changes,
    }  # fmt: skip


@pytest.mark.slow
def test_the_whole_job_from_files_and_a_checkpoint(tmp_path, capsys):
    write_all(tmp_path / "files")
    write_checkpoint(tmp_path / "model")
    console = rich.console.Console(file=io.StringIO())
    with pytest.raises(ValueError, match=r"config\.evaluation\.test_prompts is 9; .* has 8"):
        run(from_config(config(tmp_path, test_prompts=9)), tmp_path / "other", console)
    run(from_config(config(tmp_path)), tmp_path / "run", console)
    assert "0 a test problem of math500" in capsys.readouterr().out
    records = read_records(tmp_path / "run" / "records" / "gapg.jsonl")
    assert len(records) == 8 and all(record.cloud_correct for record in records)
    assert {record.gold["dataset"] for record in records} == {"math500"}
