r"""Reads the decision of a mathematical response: an answer, a call, or neither.

The decision is looked for after the last `</think>` if there is one, else in the whole text:

1. a call marker after the last box: what a marker is, misspelt ones and those without tags
   included, is told in `offload_jax.tasks.parsing`;
2. the last `\boxed{...}`;
3. without either, the last formula, `$...$`, `$$...$$`, `\(...\)` or `\[...\]`;
4. without one, the last number.
"""

import re

from offload_jax.tasks.parsing import CALL, CALL_MARKER, THINK_CLOSE
from offload_jax.tasks.task import Kind, Parsed

BOX = r"\boxed{"

# Caps that bound the work on hostile text, in characters from the end.
_WINDOW = 20_000
_FALLBACK_WINDOW = 2_000
_MOST_BOXES = 50  # that are tried from the end, each in linear time

_BOX = re.compile(r"\\f?boxed(?![a-zA-Z])\s*")
_FORMULA = re.compile(
    r"(?<!\\)\$\$(.+?)(?<!\\)\$\$|(?<![\\$])\$([^$\n]+?)(?<!\\)\$(?!\$)|\\\((.+?)\\\)|\\\[(.+?)\\\]",
    re.DOTALL,
)
# What stands between two amounts of dollars has words; a formula's are in commands or \text{...}.
_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[a-zA-Z]{3,}")
_NUMBER = re.compile(
    r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?(?:\s?\\?%)?"
)


def parse(text: str) -> Parsed:
    """Parses an untrusted response in linear time; never raises.

    `formatted` means that the answer is in a box, or that the call is the exact marker at the end.
    """
    tail = text.rpartition(THINK_CLOSE)[2][-_WINDOW:]
    begin = len(text) - len(tail)  # of the tail in the text
    boxed = last_box(tail)
    # The marker's tag and its sentence are one call: it begins with the first after any box.
    called = CALL.search(tail, boxed[0] if boxed else 0)
    if called is not None:
        exact = tail.rstrip().endswith(CALL_MARKER)
        return Parsed(Kind.CALL, None, exact, begin + called.start())
    found = boxed or _last_formula(tail) or _last_number(tail)
    if found is None:
        return Parsed(Kind.NEITHER, None, False)
    at, answer = found
    return Parsed(Kind.ANSWER, answer.strip(), boxed is not None, begin + at)


def last_box(text: str) -> tuple[int, str] | None:
    r"""Start and content of the last `\boxed{...}` that is closed; `\boxed 5` is one as well."""
    starts = [(match.start(), match.end()) for match in _BOX.finditer(text)]
    for start, inside in reversed(starts[-_MOST_BOXES:]):
        if text[inside : inside + 1] == "{":
            content = _balanced(text, inside)
            if content is not None:
                return start, content
        elif (bare := re.match(r"[^\s$.,{}\\]+", text[inside:])) is not None:
            return start, bare[0]
    return None


def _balanced(text: str, opening: int) -> str | None:
    """What stands between the brace at `opening` and the one that closes it; None if none does."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text[opening:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return text[opening + 1 : opening + match.start()]
    return None


def _last_formula(text: str) -> tuple[int, str] | None:
    begin = max(len(text) - _FALLBACK_WINDOW, 0)
    for match in reversed(list(_FORMULA.finditer(text, begin))):
        content = next(group for group in match.groups() if group is not None)
        if not _WORD.search(_COMMAND.sub(" ", content)):
            return match.start(), content
    return None


def _last_number(text: str) -> tuple[int, str] | None:
    matches = list(_NUMBER.finditer(text, max(len(text) - _FALLBACK_WINDOW, 0)))
    return (matches[-1].start(), matches[-1][0]) if matches else None
