"""Grading: labelled pairs, attacks, and answers that never end."""

import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from offload_jax.tasks.math import grading
from offload_jax.tasks.math.grading import LONGEST, Grader
from tests.tasks.math.pairs import ATTACKS, DIFFERENT, ENDLESS, EQUIVALENT


@pytest.fixture(scope="module")
def grader():
    return Grader(workers=1, seconds=20.0)


def test_there_are_enough_labelled_pairs():
    assert len(set(EQUIVALENT)) + len(set(DIFFERENT)) >= 120


def test_equivalent_answers_are_right(grader):
    verdicts = grader.grade(EQUIVALENT)
    assert [pair for pair, right in zip(EQUIVALENT, verdicts, strict=True) if not right] == []


def test_other_answers_are_wrong(grader):
    verdicts = grader.grade(DIFFERENT)
    assert [pair for pair, right in zip(DIFFERENT, verdicts, strict=True) if right] == []


def test_an_answer_is_never_executed(grader, tmp_path):
    mark = tmp_path / "mark"
    answers = [attack.format(mark) for attack in ATTACKS]
    assert grader.grade([(answer, "42") for answer in answers]) == [False] * len(answers)
    assert grader.grade([("42", answer) for answer in answers]) == [False] * len(answers)
    assert not mark.exists()


def test_text_that_reaches_sympy_is_a_number_or_a_name_or_refused():
    program = (
        "import runpy; worker = runpy.run_path('offload_jax/tasks/math/worker.py');"
        "import sympy; print(sympy.sympify('12') + 1, sympy.sympify('abc'));"
        "sympy.sympify('print(1)')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "13 abc\n" and "neither a number nor a name" in done.stderr


def test_an_endless_answer_costs_its_limit_and_no_more():
    impatient = Grader(workers=1, seconds=0.3)
    impatient.grade([("x+1", "1+x")])  # the worker is there
    start = time.monotonic()
    assert impatient.grade([(ENDLESS[0], "12")]) == [False]
    assert 0.2 <= time.monotonic() - start < 30
    start = time.monotonic()
    assert impatient.grade([(ENDLESS[0], "12")]) == [False]  # it is remembered
    assert time.monotonic() - start < 0.1


@pytest.mark.slow
def test_every_endless_answer_is_wrong_and_those_beside_it_are_judged():
    grader = Grader(workers=2, seconds=3.0)
    pairs = [(answer, "12") for answer in ENDLESS] + [("b+a", "a+b")] * 2
    assert grader.grade(pairs) == [False] * len(ENDLESS) + [True] * 2


def test_a_worker_that_dies_is_replaced(grader):
    grader.grade([("y+x+1", "x+y+1")])
    worker = grader._idle.get()
    worker._process.kill()
    worker._process.wait()
    grader._idle.put(worker)
    assert grader.grade([("y+x+2", "x+y+2")]) == [True]


def test_a_pair_is_asked_once(grader, monkeypatch):
    asked = []
    monkeypatch.setattr(grading._Worker, "ask", lambda self, *pair: asked.append(pair) or True)
    pairs = [("c+d", "d+c")] * 5 + [("12", "12"), ("12", "13")]
    assert grader.grade(pairs) == [True] * 6 + [False]
    assert grader.grade(pairs) == [True] * 6 + [False]
    assert asked == [("c+d", "d+c")]


def test_equal_texts_and_written_numbers_need_no_worker(monkeypatch):
    monkeypatch.setattr(grading._Worker, "ask", None)
    pairs = {
        ("42", "42"): True, ("43", "42"): False, ("2/4", "\\frac{1}{2}"): True,
        ("1,000", "1000"): True, ("\\dfrac{1}{2}", "0.5"): True, ("1/0", "1/0"): True,
        ("\\left(1, 2\\right)", "(1,2)"): True, ("", ""): False,
        ("x" * (LONGEST + 1), "x" * (LONGEST + 1)): False,
    }  # fmt: skip
    assert Grader(1, 1.0).grade(list(pairs)) == list(pairs.values())


def test_answers_that_differ_in_layout_or_in_how_a_number_is_written_are_the_same():
    for forms in (
        ["1,000", "1000", "$1000$", "1000."],
        ["\\frac{1}{2}", "\\dfrac{1}{2}", "2/4", "0.5"],
        ["\\left(1, 2\\right)", "(1,2)"],
    ):
        assert len({grading.canonical(form) for form in forms}) == 1
    assert len({grading.canonical(form) for form in ("4 2", "42", "x+1", "1/0", "")}) == 5


def test_several_threads_may_ask_at_once(grader):
    pairs = [(f"u+{i}", f"{i}+u") for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: grader.grade([pair]), pairs)) == [[True]] * 12


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_workers_import_no_jax_and_end_with_their_parent():
    program = (
        "from offload_jax.tasks.math.grading import Grader; import os, signal, sys\n"
        "grader = Grader(1, 5.0); grader.grade([('x+1', '1+x')])\n"
        "print(grader._idle.get()._process.pid, flush=True)\n"
        "sys.stdin.read(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent = subprocess.Popen([sys.executable, "-c", program], **pipes, text=True)
    pid = int(parent.stdout.readline())
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "jaxlib" not in maps and "tensorflow" not in maps
    parent.stdin.close()
    parent.wait()
    deadline = time.monotonic() + 10
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("settings", "message"),
    [((0, 1.0), r"config\.task\.workers is 0"), ((1, 0.0), r"config\.task\.seconds is 0\.0")],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Grader(*settings)


def test_a_worker_that_cannot_start_is_told(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ValueError, match=r"does not start; try python .*worker\.py 1"):
        Grader(1, 1.0).grade([("x+1", "1+x")])


def _cpu_seconds(pairs):
    """What a new grader and its worker take, by their own clocks."""
    usage = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # noqa: E731
    before, grader = usage() + time.process_time(), Grader(1, 20.0)
    grader.grade(pairs)
    grader._idle.get()._end()
    return usage() + time.process_time() - before


@pytest.mark.slow
def test_short_answers_are_graded_fast():
    """300 judgements a second and core; a quarter of the answers are no written numbers."""
    roots = [(a, b) for a in range(2, 82) for b in (2, 3)]
    pairs = [(f"\\sqrt{{{b}}}\\cdot {a}", f"{a}\\sqrt{{{b}}}") for a, b in roots]
    pairs += [(f"{a + 1}\\sqrt{{{b}}}", f"{a}\\sqrt{{{b}}}") for a, b in roots]
    pairs += [(str(i), str(i + i % 2)) for i in range(3 * len(pairs))]
    start = _cpu_seconds([("x+1", "1+x")])
    assert len(pairs) / (_cpu_seconds(pairs) - start) > 300
