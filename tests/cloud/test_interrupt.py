"""Ctrl-C while the cloud is silent: a process ends promptly, and its ledger is in order."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from offload_jax.cloud.fake import FakeCloud, running
from offload_jax.cloud.ledger import Ledger, Usage, account

pytest.importorskip("openai")

# Whoever is interrupted waits in the main thread, as evaluation does, or for the judging thread.
CODE = """
import sys, types
from contextlib import closing
from offload_jax.cloud.ledger import Ledger
from offload_jax.cloud.openai import OpenAICloud, OpenAIConfig
from offload_jax.tasks import make_task
from offload_jax.tasks.task import Prompt
from offload_jax.training import post_training

class Sampler:
    task, tokenizer = make_task("countdown", "unused"), None
    def __call__(self, params, prompts, key):
        return prompts, prompts

def called(tokenizer, prompts):
    return [["</think> <unknown> I need external assistance </unknown>"] for _ in prompts]

where, url, path = sys.argv[1:]
post_training.decode_responses = called
config = OpenAIConfig("openai", "m", url, max_tokens=100, concurrency=4, check=False)
prompts = [Prompt(i, f"question {i}", {}) for i in range(12)]
try:
    with closing(OpenAICloud(config, Ledger(path, "run"))) as cloud:
        if where == "evaluation":
            cloud.answer(prompts)
        post_training.sample_and_judge(None, Sampler(), cloud, prompts, None, parts=2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_ctrl_c_ends_a_process_that_waits_for_the_cloud(tmp_path, where):
    fake, path = FakeCloud(str, {"stall": 1.0}), tmp_path / "l.sqlite"
    with running(fake) as url:
        child = subprocess.Popen(
            [sys.executable, "-c", CODE, where, url, str(path)],
            env={**os.environ, "OPENAI_API_KEY": "any"}, stdout=subprocess.PIPE,
        )  # fmt: skip
        alarm = threading.Timer(300, child.kill)  # rather than to wait for ever
        alarm.start()
        try:
            while len(fake.requests) < 4 and child.poll() is None:
                time.sleep(0.02)
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == b"interrupted\n"
            assert time.monotonic() - began < 1.0
            assert child.wait(timeout=10) == 0  # the interpreter alone may take a second to end
        finally:
            alarm.cancel()
            child.kill()
    assert len(fake.requests) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["l.sqlite"]
    (row,) = account(path)
    worst = len("question 0") + 64 + 100
    assert (row["outcome"], row["attempts"], row["estimated"]) == ("lost", 4, 4)
    assert row["prompt_tokens"] + row["tokens"] == 4 * worst
    assert sqlite3.connect(path).execute("SELECT COUNT(*) FROM reservations").fetchone() == (0,)
    assert Ledger(path, "run").reserve("k", "m", Usage(1, 1, None), None, 9.0) == "reserved"
