"""A checkpoint on other data sets: in parts, again, and told what does not fit."""

import io
import json
import shutil

import pytest
import rich.console

from offload_jax.evaluation.records import read_records
from offload_jax.training.out_of_domain import evaluate_tasks
from tests.pretrained.folders import write_checkpoint
from tests.tasks.math.files import write_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out_of_domain")
    write_all(folder / "files", test=11)
    write_checkpoint(folder / "model")
    return folder


def evaluated(folder, tasks, workdir, **changes):
    config = {
        "files": str(folder / "files"),
        "sampling": {"group": 1, "prompt_tokens": 96, "response_tokens": 8, "cache_tokens": 8},
        "batch": 8,
        "workers": 1,
        **changes,
    }
    console = rich.console.Console(file=io.StringIO(), width=100)
    evaluate_tasks(config, str(folder / "model"), tasks, workdir, console)
    return console.file.getvalue()


def test_every_task_gets_its_records_and_an_interrupted_one_goes_on(folder, tmp_path):
    printed = evaluated(folder, ["math500"], tmp_path)
    path = tmp_path / "records" / "math500.jsonl"
    whole = path.read_bytes()
    assert len(read_records(path)) == 11 and "11/11" in printed and "math500" in printed
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:8]))
    evaluated(folder, ["math500", "amc23"], tmp_path)
    assert path.read_bytes() == whole
    table = (tmp_path / "table.md").read_text()
    assert "| math500 |" in table and "| amc23 |" in table and "difference" not in table
    assert json.loads((tmp_path / "config.json").read_text()).keys() == {"math500", "amc23"}
    with pytest.raises(ValueError, match=r"config\.math500\.cap was 0\.3, now 0\.2"):
        evaluated(folder, ["math500"], tmp_path, cap=0.2)


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        ([], {}, "--tasks is empty"),
        (["math501"], {}, "is 'math501'; it must be one of .*math500"),
        (["math500"], {"files": "nowhere"}, r"nowhere/math500/test\.jsonl is missing"),
        (["math500"], {"batch": 7}, r"config\.batch is 7, which does not divide over the 8 shards"),
        (["math500"], {"cap": 1.5}, r"config\.cap must be between 0 and 1"),
        (["math500"], {"capp": 1}, r"config\.capp is not a setting; did you mean 'cap'"),
        (["math500"], {"limit": 0}, r"config\.limit"),
    ],
)
def test_a_mistake_is_told_before_anything_is_computed(folder, tmp_path, tasks, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluated(folder, tasks, tmp_path, **changes)
    assert not (tmp_path / "records").exists()


def test_prompts_and_context_must_fit(folder, tmp_path):
    lengths = {"group": 1, "prompt_tokens": 12, "response_tokens": 8}
    with pytest.raises(ValueError, match=r"config\.sampling\.prompt_tokens allows 1 to 12"):
        evaluated(folder, ["amc23"], tmp_path, sampling=lengths)
    lengths = {"group": 1, "prompt_tokens": 96, "response_tokens": 80}
    with pytest.raises(ValueError, match="the device LLM's context has 128"):
        evaluated(folder, ["amc23"], tmp_path, sampling=lengths)
    shutil.rmtree(tmp_path / "data")
