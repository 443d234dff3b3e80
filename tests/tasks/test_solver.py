import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_jax.tasks.countdown import solver
from offload_jax.tasks.countdown.verifier import verify

_NUMBERS = st.lists(st.integers(1, 25), min_size=2, max_size=4).map(tuple)


def _reachable(values: tuple[int, ...]) -> set[int]:
    """All values reachable with each value used at most once: another algorithm, by subsets."""
    by_subset = {}
    for subset in range(1, 1 << len(values)):
        members = [i for i in range(len(values)) if subset >> i & 1]
        found = {values[members[0]]} if len(members) == 1 else set()
        part = (subset - 1) & subset
        while part:
            for a in by_subset[part]:
                for b in by_subset[subset ^ part]:
                    results = {a + b, a - b, a * b} | ({a // b} if a % b == 0 else set())
                    found |= {r for r in results if 1 <= r <= 119}
            part = (part - 1) & subset
        by_subset[subset] = found
    return set().union(*by_subset.values())


@settings(deadline=None)
@given(_NUMBERS, st.integers(1, 119))
def test_the_solver_finds_an_expression_exactly_when_there_is_one(numbers, target):
    expression = solver.solve(numbers, target)
    assert (expression is not None) == (target in _reachable(numbers))
    if expression is not None:
        assert verify(expression, numbers, target)


@settings(deadline=None)
@given(_NUMBERS, st.integers(0, 2**32))
def test_a_random_combination_uses_all_numbers_within_the_bounds(numbers, seed):
    steps = solver.random_combination(numbers, random.Random(seed))
    left = list(numbers)
    for step in steps:
        left.remove(step.high)
        left.remove(step.low)
        left.append(step.result)
        assert step.high >= step.low
        assert 1 <= step.result <= 119
    assert left == [steps[-1].result]
    expression = solver.write_expression(steps)
    assert sorted(int(word) for word in expression.split() if word.isdigit()) == sorted(numbers)
    assert verify(expression, numbers, steps[-1].result)


@settings(deadline=None)
@given(_NUMBERS, st.integers(0, 2**32))
def test_the_solutions_are_all_the_combinations_that_hit_the_target(numbers, seed):
    rng = random.Random(seed)
    drawn = [tuple(solver.random_combination(numbers, rng)) for _ in range(10)]
    for steps in drawn:
        target = steps[-1].result
        found = solver.solutions(numbers, target)
        assert steps in found
        assert all(verify(solver.write_expression(other), numbers, target) for other in found)
        assert len(set(map(solver.write_steps, found))) == len(found)


@settings(deadline=None)
@given(_NUMBERS, st.integers(1, 119), st.integers(0, 2**32))
def test_a_near_miss_uses_all_numbers_and_misses(numbers, target, seed):
    expression = solver.near_miss(numbers, target, random.Random(seed))
    assert sorted(int(word) for word in expression.split() if word.isdigit()) == sorted(numbers)
    assert not verify(expression, numbers, target)
    others = [value for value in solver.reachable(numbers) if value != target]
    nearest = sorted(others, key=lambda value: (abs(value - target), value))[:5]
    assert any(verify(expression, numbers, value) for value in nearest)


def test_a_near_miss_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="no combination"):
        solver.near_miss((5,), 5, random.Random(0))


def test_four_numbers_take_less_than_ten_milliseconds():
    rng, times = random.Random(0), []
    for _ in range(50):
        numbers = tuple(rng.randint(1, 25) for _ in range(4))
        start = time.perf_counter()
        solver.solve(numbers, 119)
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 0.01


@settings(deadline=None)
@given(_NUMBERS, st.integers(1, 119))
def test_a_value_is_reachable_exactly_when_it_has_a_solution(numbers, target):
    assert (target in solver.reachable(numbers)) == bool(solver.solutions(numbers, target))
