"""Exhaustive search for Countdown: reach a target from numbers with + - * / and exact division.

A combination merges numbers two by two until one value is left. Every value stays within
[MIN_RESULT, MAX_RESULT] and every step is written with its larger operand first, so that `3 * 7`
and `7 * 3` are one step. As the bounds exclude zero, any two values have at least one legal step.
"""

import functools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MIN_RESULT, MAX_RESULT = 1, 119


class Step(NamedTuple):
    """`high op low = result`, with `high >= low` for all four operators."""

    high: int
    op: str
    low: int
    result: int
    text: str


@functools.cache
def legal_steps(high: int, low: int) -> tuple[Step, ...]:
    """All legal steps from two values, `high >= low >= 1`; never empty within the bounds."""
    results = [("+", high + low), ("-", high - low), ("*", high * low)]
    if high % low == 0:
        results.append(("/", high // low))
    return tuple(
        Step(high, op, low, result, f"{high} {op} {low} = {result}")
        for op, result in results
        if MIN_RESULT <= result <= MAX_RESULT
    )


def random_combination(numbers: Sequence[int], rng: random.Random) -> list[Step]:
    """Merges all `numbers` [n >= 2] by uniformly random pairs and legal operators; n - 1 steps."""
    values, steps = list(numbers), []
    while len(values) > 1:
        a = values.pop(int(rng.random() * len(values)))
        b = values.pop(int(rng.random() * len(values)))
        options = legal_steps(a, b) if a >= b else legal_steps(b, a)
        step = options[int(rng.random() * len(options))]
        values.append(step.result)
        steps.append(step)
    return steps


def write_steps(steps: Sequence[Step]) -> str:
    """`7 * 3 = 21 , 25 + 21 = 46`."""
    return " , ".join([step.text for step in steps])


def write_expression(steps: Sequence[Step]) -> str:
    """The expression of the last step's result, e.g. `25 + ( 7 * 3 )`.

    Steps name operands by value. Of two equal values the one that was computed is taken first;
    either choice uses every number at most once.
    """
    computed: dict[int, list[str]] = {}

    def operand(value: int) -> str:
        return f"( {computed[value].pop()} )" if computed.get(value) else str(value)

    for step in steps:
        expression = f"{operand(step.high)} {step.op} {operand(step.low)}"
        computed.setdefault(step.result, []).append(expression)
    return expression


@functools.lru_cache(maxsize=1 << 17)
def solve(numbers: tuple[int, ...], target: int) -> str | None:
    """An expression that reaches `target` with every number used at most once, or None.

    Exhaustive over all subsets of `numbers` [n], within the bounds on intermediate results.
    """
    if target in numbers:
        return str(target)
    steps = _search(tuple(sorted(numbers)), target, set())
    return write_expression(steps) if steps else None


@functools.lru_cache(maxsize=1 << 15)
def reachable(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The sorted values of all combinations of ALL numbers [n >= 2]."""
    return tuple(sorted({steps[-1].result for steps in _combinations(numbers)}))


@functools.lru_cache(maxsize=1 << 17)
def solutions(numbers: tuple[int, ...], target: int) -> tuple[tuple[Step, ...], ...]:
    """All combinations of ALL numbers [n >= 2] that end at `target`, each written order once."""
    hits = (steps for steps in _combinations(numbers) if steps[-1].result == target)
    return tuple(dict.fromkeys(hits))


def near_miss(numbers: tuple[int, ...], target: int, rng: random.Random) -> str:
    """A plausible wrong expression of all numbers: its value is close to, but not, `target`.

    Raises:
        ValueError: when no combination of the numbers has another value.
    """
    misses = {
        steps[-1].result: steps for steps in _combinations(numbers) if steps[-1].result != target
    }
    if not misses:
        raise ValueError(
            f"the numbers {numbers} have no combination with a value other than {target}"
        )
    nearest = sorted(misses, key=lambda value: (abs(value - target), value))[:5]
    return write_expression(misses[rng.choice(nearest)])


def _merges(values: tuple[int, ...]) -> Iterator[tuple[Step, tuple[int, ...]]]:
    """Every legal step from any two of the values, with the values that remain after it."""
    for i in range(len(values)):
        for j in range(i + 1, len(values)):
            a, b = values[i], values[j]
            rest = values[:i] + values[i + 1 : j] + values[j + 1 :]
            for step in legal_steps(a, b) if a >= b else legal_steps(b, a):
                yield step, (*rest, step.result)


def _combinations(values: tuple[int, ...]) -> Iterator[tuple[Step, ...]]:
    for step, remaining in _merges(values):
        if len(remaining) == 1:
            yield (step,)
        else:
            for steps in _combinations(remaining):
                yield (step, *steps)


def _search(values: tuple[int, ...], target: int, seen: set) -> tuple[Step, ...] | None:
    """Depth-first search that stops at the first step whose result is the target."""
    if values in seen:
        return None
    seen.add(values)
    for step, remaining in _merges(values):
        if step.result == target:
            return (step,)
        steps = _search(tuple(sorted(remaining)), target, seen)
        if steps:
            return (step, *steps)
    return None
