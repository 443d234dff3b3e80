"""Countdown in words: how it is asked, and how a user's question is read back.

The device LLM is asked in numbers alone, so a question is either understood completely or refused.
"""

import re
from collections.abc import Sequence

from offload_jax.settings import require

FORM = (
    "Using the numbers {numbers}, each at most once, and the operations + - * /, write an "
    "expression that equals {target}. Put the expression in <answer> </answer>."
)
EXAMPLE = "Make 46 from 3, 7 and 25."

_LIST = r"(?P<numbers>\d+(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s+)\d+)*)"
_TARGET = r"(?P<target>\d+)"
_FORMS = [
    re.compile(form, re.IGNORECASE | re.ASCII)
    for form in (
        # The data's own, with or without its last sentence.
        re.escape(FORM.partition(" Put ")[0])
        .replace(r"\{numbers\}", _LIST)
        .replace(r"\{target\}", _TARGET)
        + rf"(?:{re.escape(' Put ' + FORM.partition(' Put ')[2])})?",
        rf"(?:make|reach|get)\s+{_TARGET}\s+(?:from|with|using|out of)\s+{_LIST}\s*\.?",
        rf"{_LIST}\s*(?:=|->)\s*{_TARGET}",
    )
]
_LONGEST = 400  # characters; bounds the work on hostile text


def read(
    question: str, numbers: Sequence[int], targets: Sequence[int]
) -> tuple[tuple[int, ...], int]:
    """Numbers, ascending as in the data, and target of a question.

    Args:
        question: a user's words.
        numbers: lowest and highest number of the problems that the device LLM was trained on.
        targets: the same of targets.

    Raises:
        ValueError: it is not understood, or another kind of problem than those.
    """
    text = question.strip()
    tried = (form.fullmatch(text) for form in _FORMS if len(text) <= _LONGEST)
    found = next(filter(None, tried), None)
    require(
        found is not None,
        f"The question is not understood as a Countdown problem; ask for example: {EXAMPLE}",
    )
    words = re.findall(r"\d+", found["numbers"])
    require(
        len(words) in (3, 4)
        and all(_between(word, numbers) for word in words)
        and _between(found["target"], targets),
        f"The device LLM solves problems with 3 or 4 numbers from {numbers[0]} to {numbers[1]} and"
        f" a target from {targets[0]} to {targets[1]}, no others.",
    )
    return tuple(sorted(map(int, words))), int(found["target"])


def _between(word: str, ends: Sequence[int]) -> bool:
    return len(word) <= 6 and ends[0] <= int(word) <= ends[1]
