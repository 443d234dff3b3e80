"""The whole job on a checkpoint: read, taught, post-trained, tested, exported; adapters too."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy

from offload_jax.evaluation.records import read_records
from offload_jax.pretrained.checkpoint import Pretrained
from tests.pretrained.folders import write_checkpoint

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "XLA_FLAGS": os.environ["QUICK_XLA_FLAGS"]}


def run(*arguments):
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def launch(folder, workdir, config, *flags):
    return run(
        "experiments.launch", f"--config={config}", f"--workdir={workdir}",
        f"--config.device.pretrained={folder}", "--config.task.train=64",
        "--config.task.validation=8", "--config.task.test=8", "--config.sampling.group=2",
        "--config.sampling.response_tokens=16", "--config.start.steps=0",
        "--config.learning.steps=1", "--config.learning.batch.prompts=4",
        "--config.learning.batch.length_buckets=1", "--config.evaluation.validation_prompts=8",
        "--config.evaluation.test_prompts=8", "--config.evaluation.batch=8",
        "--config.learning.filter.enabled=False", "--config.mesh.cpu_devices=1", *flags,
    )  # fmt: skip


def test_the_whole_job_with_adapters_on_a_checkpoint_and_back(tmp_path):
    write_checkpoint(tmp_path / "model")
    config, workdir = "configs/smollm2_cpu.py:lora", tmp_path / "run"
    said = launch(tmp_path / "model", workdir, config)
    assert said.returncode == 0, said.stderr
    records = read_records(workdir / "records" / "gapg.jsonl")
    assert len(records) == 8 and all(record.prompt_tokens > 8 for record in records)
    out = tmp_path / "out"
    said = run(
        "experiments.convert", f"--from={workdir / 'checkpoints' / 'gapg'}", f"--to={out}",
        "--dtype=float32",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    before, after = (
        safetensors.numpy.load_file(folder / "model.safetensors")
        for folder in (tmp_path / "model", out)
    )
    assert before.keys() == after.keys()
    np.testing.assert_array_equal(
        before["model.embed_tokens.weight"], after["model.embed_tokens.weight"]
    )
    words = [Pretrained(folder).vocabulary().to_json() for folder in (tmp_path / "model", out)]
    assert words[0] == words[1]
    again = run("experiments.convert", f"--from={tmp_path / 'model'}", f"--to={out}")
    assert again.returncode == 2 and "is not empty" in again.stderr


def test_a_mistake_about_the_checkpoint_is_one_sentence(tmp_path):
    write_checkpoint(tmp_path / "model")
    cases = {
        "--config.device.pretrained=nowhere": "nowhere does not exist",
        "--config.sampling.response_tokens=100": "the device LLM's context has 128",
        "--config.sampling.prompt_tokens=9": "config.sampling.prompt_tokens allows 1 to 9",
    }
    for flag, message in cases.items():
        said = launch(tmp_path / "model", tmp_path / "run", "configs/smollm2_cpu.py", flag)
        assert said.returncode == 2 and message in said.stderr, (flag, said.stderr)
        assert len(said.stderr.splitlines()) == 1
