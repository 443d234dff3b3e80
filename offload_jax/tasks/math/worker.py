"""The process that grades answers with math-verify; run by `grading`, not imported by anything.

It reads JSON lines `[answer, gold]` and writes one byte for each: 1 equivalent, 0 not. It begins
with one byte when it is ready, and ends with its input. An untrusted answer can send sympy into a
loop that no Python code interrupts, or make it ask for any amount of memory: hence an alarm of the
operating system's, which ends the process, and a bound on its memory. The alarm counts the time of
this process alone, so that a busy machine changes no verdict.
"""

import contextlib
import functools
import json
import logging
import re
import resource
import signal
import sys
import zlib

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, Float, Integer, Symbol, UnevaluatedExpr
from sympy.parsing import sympy_parser

_MEMORY = 4 * 2**30  # bytes of address space
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_NAME = re.compile(r"[A-Za-z]\w{0,31}", re.ASCII)
_CONFIG = [LatexExtractionConfig()]


def _written(text: str, **_) -> Expr:
    """A number or a name that is written out; anything else is refused."""
    if _INTEGER.fullmatch(text):
        return Integer(int(text))
    if _DECIMAL.fullmatch(text):
        return Float(text)
    if _NAME.fullmatch(text):
        return Symbol(text)
    raise ValueError("neither a number nor a name")


# sympy turns text into expressions by Python's eval. math-verify's LaTeX parser hands it numbers
# only, and sympy's own modules names; this makes sure of it, and is faster.
sympy_parser.parse_expr = _written


@functools.lru_cache(maxsize=10_000)
def _gold(text: str) -> list:
    return _expressions(text)


def _expressions(text: str) -> list:
    return parse(f"${text}$", _CONFIG, parsing_timeout=None)


def equivalent(answer: str, gold: str) -> bool:
    """Whether math-verify takes the answer for the gold one; False where it fails."""
    try:
        known, found = _gold(gold), _expressions(answer)
        if _clearly_differ(known, found):
            return False
        return verify(known, found, timeout_seconds=None, allow_set_relation_comp=True)
    except Exception:  # also RecursionError and MemoryError
        return False


def _clearly_differ(gold: list, answer: list) -> bool:
    """Whether two formulas have different values at a point: then no algebra need be tried.

    It is what most wrong answers do, and takes a tenth of the time that math-verify takes; besides,
    math-verify rounds to six decimals, and so takes all constants of nature for one another.
    """
    pair = gold[:1] + answer[:1]
    plain = [isinstance(x, Expr) and not isinstance(x, Symbol) for x in pair]
    # Percentages, which are kept unevaluated, are math-verify's.
    if len(pair) < 2 or not all(plain) or any(x.has(UnevaluatedExpr) for x in pair):
        return False
    try:
        a, b = (complex(x.subs({v: _value(v) for v in x.free_symbols}).evalf(15)) for x in pair)
    except Exception:
        return False
    size = max(abs(a), abs(b))
    # What is nothing but rounding errors: of variables' values, or of numbers computed with care.
    nothing = 1e-9 if any(x.free_symbols for x in pair) else 1e-60
    return size > nothing and abs(a - b) > 1e-5 * size


def _value(variable: Symbol) -> float:
    """Between 1 and 2, by the name alone: the same variable may be real in one formula only."""
    return 1 + zlib.crc32(variable.name.encode()) / 2**32


def main(seconds: float) -> None:
    """Serves until the input ends. `seconds`: of its CPU time that one answer may take."""
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(OSError, ValueError):  # not every system can bound it
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, whose end is ours
    _reply(b"1")
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        right = equivalent(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _reply(b"1" if right else b"0")


def _reply(byte: bytes) -> None:
    sys.stdout.buffer.write(byte)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    equivalent("1", "1")  # compiles its patterns
    main(float(sys.argv[1]))
