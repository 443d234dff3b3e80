"""Procedural search traces: the supervised start of the device LLM.

A trace is a response. It tries full combinations of the numbers, writes the result of every step
and how far each try is off the target, and ends with an answer or a call. A model trained on traces
sometimes solves, sometimes errs and sometimes calls, like an instruct model before post-training.
"""

import dataclasses
import random
from collections.abc import Sequence
from typing import Literal

from offload_jax.tasks.countdown import solver
from offload_jax.tasks.parsing import ANSWER_CLOSE, ANSWER_OPEN, CALL_MARKER, THINK_CLOSE
from offload_jax.tasks.task import Prompt

_OPERATORS = "+-*/"
_DRAWS = 4  # per try, before a plan is left short


@dataclasses.dataclass(frozen=True)
class TraceConfig:
    """How well, and how patiently, a trace searches.

    Attributes:
        max_tokens: bound on the tokens of a response, the end-of-sequence token included.
        solve: probability that a solution is among the planned tries; a trace that ends before
            it does not solve.
        impatience: the j-th failed try ends the search with probability `j * impatience`; at 0
            only the token limit ends it.
        near: how a search ends without success: if its last try was off the target by at most
            `near`, with that try's expression as a (wrong) answer, otherwise with a call.
    """

    max_tokens: int = 128
    solve: float = 0.9
    impatience: float = 0.0
    near: int = 0
    kind: Literal["countdown"] = "countdown"

    def __post_init__(self):
        for name in ("solve", "impatience"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, which is not a probability.")
        if self.near < 0:
            raise ValueError(f"near is {self.near}; it must not be negative.")


def sample_traces(prompts: Sequence[Prompt], rng: random.Random, config: TraceConfig) -> list[str]:
    """One trace per prompt [P]."""
    return [sample_trace(prompt, rng, config) for prompt in prompts]


def sample_trace(prompt: Prompt, rng: random.Random, config: TraceConfig) -> str:
    """The text that follows `<think>`, without the end-of-sequence token.

    Raises:
        ValueError: when `max_tokens` has no room for one try and an answer.
    """
    numbers, target = prompt.gold["numbers"], prompt.gold["target"]
    most = _most_tries(len(numbers), config.max_tokens)
    plan = _plan(numbers, target, most, rng.random() < config.solve, rng)
    tries: list[str] = []
    for failed, steps in enumerate(plan, start=1):
        tries.append(_write_try(steps, target))
        if steps[-1].result == target or rng.random() < failed * config.impatience:
            break
    if abs(steps[-1].result - target) <= config.near:
        answer = solver.write_expression(steps)
        return " ".join([*tries, THINK_CLOSE, ANSWER_OPEN, answer, ANSWER_CLOSE])
    return " ".join([*tries, THINK_CLOSE, CALL_MARKER])


def fewest_tokens(n: int) -> int:
    """The smallest `max_tokens` for prompts of n numbers: one try and the longest ending."""
    a_try, ending = _token_counts(n)
    return a_try + ending


def _most_tries(n: int, max_tokens: int) -> int:
    """Tries of n numbers that fit with the longest ending.

    Raises:
        ValueError: not even one fits.
    """
    a_try, ending = _token_counts(n)
    most = (max_tokens - ending) // a_try
    if most < 1:
        raise ValueError(
            f"config.start.traces.max_tokens = {max_tokens} has no room for one try of "
            f"{n} numbers, which takes {a_try + ending}"
        )
    return most


def _token_counts(n: int) -> tuple[int, int]:
    """Tokens of one try, and of the longest ending with the end-of-sequence token.

    A try has n - 1 steps of 5 tokens with commas between, and 2 for the distance. The longest
    answer has n numbers, n - 1 operators, brackets around all but the last step, and 3 tags.
    """
    ending = max(n + (n - 1) + 2 * (n - 2) + 3, 1 + len(CALL_MARKER.split())) + 1
    return 6 * (n - 1) + 1, ending


def _plan(
    numbers: Sequence[int], target: int, most: int, solve: bool, rng: random.Random
) -> list[list[solver.Step]]:
    """Up to `most` different combinations, in a fixed order, a solution among them if `solve`.

    In order, because a model that decodes greedily then goes from each try to a later one, where
    random tries would teach it to repeat the likeliest one for ever.
    """
    plan = {}
    if solve:
        steps = rng.choice(solver.solutions(numbers, target))
        plan[_rank(steps)] = steps
    for _ in range(_DRAWS * most):
        if len(plan) == most:
            break
        steps = solver.random_combination(numbers, rng)
        plan[_rank(steps)] = steps
    return [plan[rank] for rank in sorted(plan)]


def _rank(steps: Sequence[solver.Step]) -> tuple:
    """Where a combination stands in the order: large operands first, then + - * /."""
    return tuple((-step.high, -step.low, _OPERATORS.index(step.op)) for step in steps)


def _write_try(steps: Sequence[solver.Step], target: int) -> str:
    """`7 * 3 = 21 , 25 + 21 = 46 off 0`: the steps, and how far the result is off the target.

    A number says more than yes or no: from the distance a small model learns within minutes to
    compare with the target, which it otherwise learns last.
    """
    return f"{solver.write_steps(steps)} off {abs(steps[-1].result - target)}"
