"""Whether two answers are equivalent: math-verify in worker processes, with a hard time limit.

What needs no algebra is decided here: equal texts, and numbers that are written out. The rest goes
to a worker (`worker.py`). A worker that takes too long ends and is replaced, and the answer counts
as wrong: a pathological answer costs its limit, never the run.
"""

import functools
import importlib.util
import json
import os
import queue
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

from offload_jax.settings import require

LONGEST = 1_000  # characters of an answer; a longer one is wrong
_START_SECONDS = 300.0  # for the imports of a worker, on however busy a machine
_PATIENCE = 20  # by how much the limit on its own time may be exceeded by the clock
_CACHED = 200_000  # pairs

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:(?:,|\{,\})\d{3}){1,5}|\d{1,18})(?:\.\d{1,18})?", re.ASCII)
_FRACTION = re.compile(r"(-?)(?:\\frac\{(\d{1,9})\}\{(\d{1,9})\}|(\d{1,9})/(\d{1,9}))", re.ASCII)
_SPACE = re.compile(r"(?<![a-zA-Z0-9]) | (?![a-zA-Z0-9])")  # "4 2" is not 42
_REPLACED = (
    (re.compile(r"\s+|(?<!\\)\\[,;:! ]|\\quad|~"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])"), ""),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset"),
    # As programs write it: 4.5e33, np.arcsin(x).
    (re.compile(r"(?<=\d)[eE]([+-]?)0*(\d{1,4})(?![\w.])"), r"\\times 10^{\1\2}"),
    (re.compile(r"\bnp\.(?=[a-z])"), r"\\"),
)


@functools.cache
def shared_grader(workers: int, seconds: float) -> "Grader":
    """One grader for all tasks of a process that have the same settings."""
    return Grader(workers, seconds)


class Grader:
    """Grades answers; several threads may ask at once. Workers start when they are needed.

    They end with this process, also where it is killed.
    """

    def __init__(self, workers: int, seconds: float):
        """`seconds`: of a worker's time that one answer may take.

        Raises:
            ValueError: a setting is impossible, or math-verify is missing.
        """
        require(workers >= 1, f"config.task.workers is {workers}; it must be at least 1.")
        require(seconds > 0, f"config.task.seconds is {seconds}; it must be positive.")
        require(
            importlib.util.find_spec("math_verify") is not None,
            "The task 'math' needs the package math-verify: pip install 'offload_jax[math]'.",
        )
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(_Worker(seconds))
        self._threads = ThreadPoolExecutor(workers)
        self._equivalent = functools.lru_cache(_CACHED)(self._ask)

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each (untrusted answer, gold answer) is equivalent. Never raises for an answer.

        Raises:
            ValueError: a worker cannot be started.
        """
        verdicts = {pair: _at_once(*pair) for pair in pairs}
        left = [pair for pair, right in verdicts.items() if right is None]
        run = map if len(left) == 1 else self._threads.map  # one needs no other thread
        verdicts.update(zip(left, run(lambda pair: self._equivalent(*pair), left), strict=True))
        return [verdicts[pair] for pair in pairs]

    def _ask(self, answer: str, gold: str) -> bool:
        worker = self._idle.get()
        try:
            return worker.ask(normalise(answer), normalise(gold))
        finally:
            self._idle.put(worker)


class _Worker:
    """One worker process, started by its first question."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._process: subprocess.Popen | None = None

    def ask(self, answer: str, gold: str) -> bool:
        """False also where the worker took too long or ended."""
        if self._process is not None and self._process.poll() is not None:
            self._end()  # something else has ended it: no fault of this answer
        if self._process is None:
            self._start()
        try:
            self._process.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
            reply = self._reply(_PATIENCE * self._seconds)
        except BrokenPipeError:
            reply = b""
        if not reply:
            self._end()
        return reply == b"1"

    def _start(self) -> None:
        # Not multiprocessing: its children import this process's main module, and so JAX. With -P
        # the worker does not take this folder's modules for others of their names.
        path = str(Path(__file__).with_name("worker.py"))
        command = [sys.executable, "-P", path, str(self._seconds)]
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if self._reply(_START_SECONDS) != b"1":
            self._end()
            raise ValueError(f"A process that grades answers does not start; try python {path} 1.")

    def _reply(self, seconds: float) -> bytes:
        """The next byte; empty if there is none in time."""
        waiting = select.poll()
        waiting.register(self._process.stdout, select.POLLIN)
        if not waiting.poll(1000 * seconds):
            return b""
        return os.read(self._process.stdout.fileno(), 1)

    def _end(self) -> None:
        process, self._process = self._process, None
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def normalise(text: str) -> str:
    """An answer without what is only layout: spacing, size of brackets, marks around it."""
    text = text.replace("−", "-").strip().strip("*").strip()
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = text.strip().removesuffix(".").strip()
    while len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return text


def canonical(text: str) -> str:
    """The same text for answers that are equal but for layout or the writing of a number."""
    text = normalise(text[:LONGEST])
    number = _number(text)
    return _SPACE.sub("", text) if number is None else str(number)


def _at_once(answer: str, gold: str) -> bool | None:
    """The verdict where none of algebra is needed, else None."""
    if len(answer) > LONGEST or not answer.strip():
        return False
    answer, gold = normalise(answer), normalise(gold)
    if _SPACE.sub("", answer) == _SPACE.sub("", gold):
        return answer != ""
    numbers = _number(answer), _number(gold)
    if None in numbers:
        return None
    # A decimal may be the other number rounded, which math-verify judges.
    return None if numbers[0] != numbers[1] and "." in answer + gold else numbers[0] == numbers[1]


def _number(text: str) -> Fraction | None:
    """The value of an integer, a decimal or a fraction of integers that is written out."""
    if _NUMBER.fullmatch(text):
        return Fraction(re.sub("[{},]", "", text))
    if (match := _FRACTION.fullmatch(text)) is not None:
        sign, above, below = (part for part in match.groups() if part is not None)
        return Fraction(int(sign + above), int(below)) if int(below) else None
    return None
