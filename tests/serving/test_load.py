"""The load generator finds what it is there to find."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from offload_jax.cloud.protocol import Answer
from offload_jax.tasks.countdown import solver

pytest.importorskip("openai")
ROOT = Path(__file__).parents[2]


def loaded(url, *flags):
    command = [sys.executable, "-m", "experiments.serve_load", f"--url={url}", "--seconds=0.5",
               "--clients=3", "--leave=0.2", f"--pid={os.getpid()}", *flags]  # fmt: skip
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.stdout, said.stderr
    return said.returncode, json.loads(said.stdout)


def test_answers_to_their_questions_are_in_order_and_others_are_found(fakes):
    class Solver(fakes.FakeCloud):
        numbers = None  # those of the first question, once answers are to be mixed up
        mixed = False

        def answer(self, prompts):
            (prompt,) = prompts
            gold = self.numbers if self.mixed else prompt.gold
            self.numbers = self.numbers or prompt.gold
            return [Answer(f"<answer> {solver.solve(gold['numbers'], gold['target'])} </answer>")]

    engine, cloud = fakes.FakeEngine(fakes.CALL, seconds=0.02), Solver()
    with fakes.serving(engine, cloud, read=fakes.countdown().asked) as (_, url):
        code, found = loaded(url)
        assert code == 0 and found["lost"] == found["doubled"] == found["foreign"] == 0
        assert found["served_by"] == {"cloud": found["requests"]["answered"]}
        assert found["requests"]["asked"] == sum(found["requests"].values()) / 2
        assert found["seconds_to_answer"]["p50"] > 0.02 and found["memory_mib"]["most"] > 0
        cloud.mixed = True
        code, found = loaded(url)
        assert code == 1 and found["foreign"] > 0
