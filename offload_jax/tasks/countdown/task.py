"""Countdown as a task: prompts, the device's template, parsing, verification, and its solver."""

import dataclasses
import functools
import random
from collections.abc import Sequence
from pathlib import Path

from offload_jax.tasks import parsing, prompts
from offload_jax.tasks.countdown import builder, questions, solver, traces, verifier
from offload_jax.tasks.countdown.tokenizer import BOS, make_vocabulary
from offload_jax.tasks.task import Parsed, Prompt, id_of
from offload_jax.vocabulary import Vocabulary


class CountdownTask:
    """Reach a target from numbers with + - * /, every number used at most once."""

    name = "countdown"
    openings = (parsing.CALL_OPEN, parsing.ANSWER_OPEN)
    answer_form = parsing.ANSWER_FORM

    def __init__(self, data_dir: str | Path, vocabulary: Vocabulary | None = None, **settings):
        """The data is built when first read.

        Args:
            data_dir: where.
            vocabulary: of a pretrained device LLM; None: Countdown's own.
            settings: fields of `builder.CountdownConfig`.
        """
        self.config = builder.CountdownConfig(**settings)
        self._chat = vocabulary is not None
        self.vocabulary = vocabulary if self._chat else make_vocabulary()
        self._data_dir = data_dir

    @functools.cached_property
    def _builder(self) -> builder.Countdown:
        return builder.build(self.config, self._data_dir)

    def prompts(self, split: str) -> Sequence[Prompt]:
        """Prompts of a split, read lazily; ValueError for an unknown split."""
        if split not in builder.SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(builder.SPLITS)}")
        return _Prompts(self._builder.as_data_source(split))

    def asked(self, question: str) -> Prompt:
        """What a user asks, in one of the forms that `questions` knows; else ValueError."""
        numbers, target = questions.read(question, self.config.numbers, self.config.targets)
        prompt = make_prompt(0, numbers, target)
        return dataclasses.replace(prompt, id=id_of(prompt.question))

    def device_text(self, prompt: Prompt) -> str:
        """`<bos> 3 7 25 = 46 <think>`: at most 10 tokens; the response begins after `<think>`.

        A pretrained device LLM is asked in its own template; the reply's beginning is given.
        """
        if self._chat:
            system = {"role": "system", "content": prompts.COUNTDOWN_SYSTEM}
            user = {"role": "user", "content": prompt.question}
            return self.vocabulary.render([system, user]) + prompts.COUNTDOWN_LEAD
        numbers = " ".join(map(str, prompt.gold["numbers"]))
        return f"{BOS} {numbers} = {prompt.gold['target']} {parsing.THINK_OPEN}"

    def parse(self, text: str) -> Parsed:
        """The decision in a response; never raises."""
        return parsing.parse(text)

    def verify(self, answer: str, prompt: Prompt) -> bool:
        """Whether an untrusted expression reaches the target exactly; never raises."""
        return verifier.verify(answer, prompt.gold["numbers"], prompt.gold["target"])

    def canonical(self, answer: str, prompt: Prompt) -> str:
        """`= 46` for an expression of the prompt's numbers that comes to it; else the text."""
        value = verifier.value(answer, prompt.gold["numbers"])
        return answer.strip() if value is None else f"= {value}"

    def examples(
        self, prompts: Sequence[Prompt], rng: random.Random, config: traces.TraceConfig
    ) -> list[str]:
        """A search trace for each prompt."""
        return traces.sample_traces(prompts, rng, config)

    def right_answer(self, prompt: Prompt) -> str | None:
        """An answer that verifies, by exhaustive search; None if there is none."""
        return solver.solve(prompt.gold["numbers"], prompt.gold["target"])

    def wrong_answer(self, prompt: Prompt, rng: random.Random) -> str:
        """A plausible answer that does not verify."""
        return solver.near_miss(prompt.gold["numbers"], prompt.gold["target"], rng)


def make_prompt(id: int, numbers: Sequence[int], target: int) -> Prompt:
    """A Countdown prompt; its question says how to answer, as the cloud has no system prompt."""
    numbers = tuple(int(number) for number in numbers)
    listed = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    question = questions.FORM.format(numbers=listed, target=target)
    return Prompt(int(id), question, {"numbers": numbers, "target": int(target)})


class _Prompts(Sequence):
    """Prompts over a TFDS data source [n]; a slice is a list."""

    def __init__(self, source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        return make_prompt(**self._source[range(len(self))[index]])

    def __getitems__(self, indices: Sequence[int]) -> list[Prompt]:
        """Reads many at once, several times faster than one by one."""
        if not len(indices):
            return []
        return [make_prompt(**example) for example in self._source.__getitems__(list(indices))]
