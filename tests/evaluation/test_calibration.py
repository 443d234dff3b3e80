"""The dial's setting from hand-made records."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from offload_jax.evaluation.calibration import calibration
from offload_jax.evaluation.metrics import wilson
from offload_jax.evaluation.records import write_records

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("samples", Path(__file__).with_name("samples.py"))
samples = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(samples)


def records():
    """Ten prompts: P(call) 0.0 to 0.9; the cloud solves all but the last."""
    made = []
    for i in range(10):
        outcome = "call" if i >= 5 else ("wrong" if i == 4 else "right")
        one = samples.record(i, outcome, i != 9, fallback=i == 5 if i >= 5 else None)
        made.append(dataclasses.replace(one, p_call=i / 10))
    return made


def test_three_of_ten_call_and_the_others_are_taken_back():
    found = calibration(records(), 0.3)
    assert found.threshold == 0.6 and found.prompts == 10
    assert found.call_ratio == wilson(3, 10)
    # 7 and 8 by the cloud, 0 to 3 by the device, 5 by its second answer; not 4, 6 and 9.
    assert found.accuracy == wilson(7, 10)
    assert found.cloud_down == wilson(5, 10)


def test_the_ends_of_the_dial():
    nobody, everybody = calibration(records(), 0.0), calibration(records(), 1.0)
    assert nobody.threshold == 0.9 and nobody.accuracy == nobody.cloud_down == wilson(5, 10)
    assert everybody.threshold == -1.0  # a finite number, which JSON can hold
    assert everybody.call_ratio == wilson(10, 10) and everybody.accuracy == wilson(9, 10)


def test_ties_across_the_limit_stay_on_the_device():
    tied = [dataclasses.replace(record, p_call=0.5) for record in records()]
    assert calibration(tied, 0.3).call_ratio == wilson(0, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_call": None}, "scores must be finite"),
        ({"fallback": None, "fallback_correct": None}, "when its call is refused is not known"),
        ({"cloud_correct": None, "cloud_tokens": None, "cloud_seconds": None, "cost": None},
         "needs the cloud's answer"),
    ],
)  # fmt: skip
def test_records_that_lack_something_are_refused(change, message):
    lacking = [*records()[:-1], dataclasses.replace(records()[-1], **change)]
    with pytest.raises(ValueError, match=message):
        calibration(lacking, 0.3)


def run(*arguments):
    command = [sys.executable, "-m", "experiments.calibrate", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command_prints_and_writes(tmp_path):
    path, to = tmp_path / "gapg.jsonl", tmp_path / "out" / "threshold.json"
    write_records(path, records())
    said = run(f"--records={path}", "--call_ratio=0.3", f"--to={to}")
    assert said.returncode == 0, said.stderr
    assert "--config.threshold=0.6" in said.stdout and "70.0" in said.stdout
    assert "accuracy with the cloud down" in said.stdout and "50.0" in said.stdout
    written = json.loads(to.read_text())
    assert written["threshold"] == 0.6 and written["records"] == str(path)
    assert written["accuracy"]["value"] == 0.7
    missing = run(f"--records={tmp_path / 'none.jsonl'}", "--call_ratio=0.3")
    assert missing.returncode == 2 and missing.stderr.startswith("Error: ")
    assert len(missing.stderr.splitlines()) == 1
