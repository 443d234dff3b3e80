"""Which examples the supervised start imitates."""

from types import SimpleNamespace

import pytest
import tokenizers

from offload_jax.tasks.arithmetic.task import ExampleConfig
from offload_jax.tasks.countdown.traces import TraceConfig
from offload_jax.tasks.math.config import SolutionConfig
from offload_jax.tasks.task import Prompt
from offload_jax.training.start import fitting

PROMPTS = [Prompt(i, "?", {"tokens": n}) for i, n in enumerate((3, 9, 5, 8))]


class Task:
    def __init__(self):
        words = tokenizers.models.WordLevel({"w": 0, "<end>": 1}, unk_token="w")
        tokenizer = tokenizers.Tokenizer(words)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        self.vocabulary = SimpleNamespace(tokenizer=tokenizer, stops=(1,))

    def examples(self, prompts, rng, config):
        assert config.solve == 1.0
        return [" ".join(["w"] * prompt.gold["tokens"]) for prompt in prompts]


def experiment(traces, room, steps=3):
    start = SimpleNamespace(steps=steps, traces=traces, batch=SimpleNamespace(prompts=2))
    return SimpleNamespace(start=start, sampling=SimpleNamespace(response_tokens=room), seed=0)


def test_published_solutions_that_are_too_long_are_left_out_and_told(capsys):
    # The token that ends a response counts: 8 and 9 words do not fit 8 tokens.
    kept = fitting(experiment(SolutionConfig(), 8), PROMPTS, Task())
    assert [prompt.id for prompt in kept] == [0, 2]
    assert "2 of 4 solutions are longer than 8 tokens" in capsys.readouterr().err
    assert fitting(experiment(SolutionConfig(), 10), PROMPTS, Task()) == PROMPTS
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("traces", "room"), [(ExampleConfig(), 9), (SolutionConfig(), 5)])
def test_generated_examples_that_do_not_fit_or_too_few_solutions_are_refused(traces, room):
    with pytest.raises(ValueError, match=rf"response_tokens is {room}; .* the longest has 10\."):
        fitting(experiment(traces, room), PROMPTS, Task())


def test_no_example_is_made_where_none_is_needed():
    task = SimpleNamespace()  # has none to give
    assert fitting(experiment(ExampleConfig(), 1, steps=0), PROMPTS, task) is PROMPTS
    assert fitting(experiment(TraceConfig(), 1), PROMPTS, task) is PROMPTS
