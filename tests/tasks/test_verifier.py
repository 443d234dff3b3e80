import random
import time
import warnings
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_jax.tasks.countdown.verifier import verify


@pytest.mark.parametrize(
    "expression",
    ["( 3 * 7 ) + 25", "3*7+25", "25+3*7", " (25 + (7*3)) ", "25 - -7*3", "((((25))))+(3)*7"],
)
def test_an_expression_that_reaches_the_target_is_right(expression):
    assert verify(expression, (3, 7, 25), 46)


def test_numbers_may_stay_unused_and_intermediate_results_may_be_fractions():
    assert verify("25 - 3", (3, 7, 25), 22)
    assert verify("8 / (3 - 8 / 3)", (3, 3, 8, 8), 24)
    assert not verify("1 / 3 * 3", (1, 3), 1)
    assert not verify("10 / 3", (10, 3), 3)


@pytest.mark.parametrize(
    "expression",
    [
        "3 * 7 + 24",
        "23 + 23",
        "46",
        "3 * 7 + 25 = 46",
        "3 * 7 + 25 + 3 - 3",
        "0x2e",
        "4_6",
        "46.0",
        "٣*7+25",
        "３*7+25",
        "03*7+25",
        "3*7+25\x00",
        "3*7\n+25",
        "3**7",
        "25//3",
        "3(7)+25",
        "(3,7,25)",
        "25+3*7#",
        "lambda: 46",
        "__import__('os').abort()",
        "True",
        "",
        "()",
        "25 +",
        "25 / (7 - 7)",
        "25 / (3 - 3)",
        "~25",
        "+46",
        "3 if 7 else 25",
        "9**9**9**9",
    ],
)
def test_anything_else_is_wrong(expression):
    assert not verify(expression, (3, 3, 7, 7, 25), 46)


# An expression tree as ("op", left, right) or a number, evaluated and written independently.
_TREES = st.recursive(
    st.integers(0, 30),
    lambda node: st.tuples(st.sampled_from("+-*/"), node, node),
    max_leaves=6,
)


def _evaluate(tree) -> Fraction | None:
    if isinstance(tree, int):
        return Fraction(tree)
    op, left, right = tree[0], _evaluate(tree[1]), _evaluate(tree[2])
    if left is None or right is None or (op == "/" and right == 0):
        return None
    by_op = {"+": left + right, "-": left - right, "*": left * right}
    return by_op[op] if op in by_op else Fraction(left, right)


def _write(tree) -> str:
    if isinstance(tree, int):
        return str(tree)
    return f"({_write(tree[1])}{tree[0]}{_write(tree[2])})"


def _leaves(tree) -> list[int]:
    return [tree] if isinstance(tree, int) else _leaves(tree[1]) + _leaves(tree[2])


@settings(deadline=None)
@given(_TREES, st.integers(-5, 120), st.data())
def test_the_verifier_agrees_with_an_independent_evaluation(tree, target, data):
    value, leaves, text = _evaluate(tree), _leaves(tree), _write(tree)
    assert verify(text, leaves, target) == (value == target)
    if value is not None and value.denominator == 1:
        assert verify(text, data.draw(st.permutations([*leaves, 7])), int(value))
        missing = data.draw(st.integers(0, len(leaves) - 1))
        assert not verify(text, leaves[:missing] + leaves[missing + 1 :], int(value))


def _hostile_strings() -> list[str]:
    rng = random.Random(0)
    alphabet = "0123456789+-*/() .,_=<>\n\x00eExX'\"[]{}#:;@!~^%&|\\abclmd٣²é\ud800"
    arithmetic = "379+-*/() "
    strings = ["".join(rng.choices(alphabet, k=rng.randint(0, 80))) for _ in range(3500)]
    strings += ["".join(rng.choices(arithmetic, k=rng.randint(0, 300))) for _ in range(5500)]
    strings += [  # made of parts that pass the cheap checks: valid numbers, few symbols
        "".join(rng.choices(["(", ")", "-", "+", "*", "/", " "], k=k)) + "3" for k in range(128)
    ] * 5
    for k in (1, 5, 10, 20, 30, 40, 50, 60, 63, 64, 100, 126, 127, 128, 1000, 100_000):
        for part in ("(", ")", "-", "+", "*", "3", "9**", "3*", "(3", "-(", "()", "[", "~", "x."):
            strings += [part * k, part * k + "3", "3" + part * k, f"{'(' * k}3{')' * k}{part}"]
    strings += ["9" * 1_000_000, " " * 1_000_000, "3+" * 500_000, "(" * 1_000_000, "\x00" * 10**6]
    strings += [
        "9**9**9",
        "().__class__.__bases__[0]",
        "__import__('os')",
        "3if 7else 9",
        "3(7)(9)",
    ]
    return strings


def _seconds(expression: str) -> float:
    start = time.perf_counter()
    assert verify(expression, (3, 7, 9), 46) is False
    return time.perf_counter() - start


def test_ten_thousand_hostile_strings_are_survived_within_a_millisecond_each():
    strings = _hostile_strings()
    assert len(strings) >= 10_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for expression in strings:
            # The clock also sees other processes: a slow string is measured again.
            assert any(_seconds(expression) < 1e-3 for _ in range(10)), expression[:80]


@settings(deadline=None)
@given(st.text())
def test_no_text_makes_the_verifier_raise(text):
    assert verify(text, (1, 2, 3), 10**6) is False
