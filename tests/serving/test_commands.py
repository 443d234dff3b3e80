"""Mistakes on the command line are one sentence."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openai")
ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-m", *arguments]
    alone = {**os.environ, "XLA_FLAGS": os.environ["QUICK_XLA_FLAGS"]}  # one device
    return subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)


def one_sentence(said, status, message):
    assert said.returncode == status and message in said.stderr, said.stderr
    assert said.stderr.startswith("Error: ") and len(said.stderr.splitlines()) == 1


def test_serve_tells_a_mistake_before_anything_is_read(tmp_path):
    serve = ("experiments.serve", f"--checkpoint={tmp_path}")
    one_sentence(run(*serve, "--config.slots=0"), 2, "config.slots is 0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one_sentence(run(*serve, f"--port={port}"), 2, "Address already in use")


def test_ask_shows_work_decision_answer_and_receipt(fakes):
    with fakes.serving(fakes.FakeEngine(fakes.CALL, p=0.75), fakes.FakeCloud()) as (service, url):
        said = run("experiments.ask", "Make 46 from 3, 7 and 25.", f"--url={url}/v1")
        shown = said.stdout.split()
        assert said.returncode == 0, said.stderr
        assert said.stderr == "" and said.stdout.startswith("<think> 3 + 7 = 10 </think>")
        assert "it calls the cloud: called, P(call) 0.750" in said.stdout
        assert shown[shown.index("served") :][:3] == ["served", "by", "cloud"]
        service.engine.full = True
        one_sentence(run("experiments.ask", "?", f"--url={url}/v1"), 1, "Too many questions")
    one_sentence(run("experiments.ask", "?", f"--url={url}/v1"), 1, "no pair is served on")


def test_ask_needs_no_server_if_it_has_a_checkpoint(fakes, tmp_path):
    folder = tmp_path / "checkpoints" / "gapg"
    fakes.save_policy(folder)
    ask = ("experiments.ask", "Make 46 from 3, 7 and 25.", f"--workdir={tmp_path / 'served'}")
    small = ("--config.slots=1", "--config.sampling.response_tokens=16")
    said = run(*ask, f"--checkpoint={folder}", *small, "--config.threshold=-1.0")
    assert said.returncode == 0, said.stderr
    assert "it calls the cloud: P(call) above the dial" in said.stdout
    shown = said.stdout.split()
    assert shown[shown.index("served") :][:3] == ["served", "by", "cloud"]
    one_sentence(run(*ask, f"--checkpoint={tmp_path / 'none'}"), 2, "none")
    one_sentence(run(*ask), 2, "is for --checkpoint")
    both = run(*ask, f"--checkpoint={folder}", "--url=http://127.0.0.1:1/v1")
    one_sentence(both, 2, "--url and --checkpoint are both given")
