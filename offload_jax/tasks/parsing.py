"""Reads the decision of a tagged response: an answer, a call, or neither. The rule is here only.

The decision is looked for at the end of the response: after the last `</think>` if there is one,
else in the whole text. An answer is `<answer>...</answer>`. A call is an opening `<unknown>` tag or
the sentence "I need external assistance", either of them possibly misspelt: the paper's own case
studies count such responses as calls. Of several decisions the one that starts last wins.
"""

import re

from offload_jax.tasks.task import Kind, Parsed

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
ANSWER_FORM = f"{ANSWER_OPEN} {{}} {ANSWER_CLOSE}"
CALL_OPEN = "<unknown>"
CALL_MARKER = f"{CALL_OPEN} I need external assistance </unknown>"

# A decision sits at the end; the cap bounds the work on hostile text.
_WINDOW = 4096
# Each pattern is linear: no two neighbouring repetitions can match the same characters.
CALL = re.compile(
    # <unknown>, <unkown>, <unknwon>, <uknown>, <unknow>, but not the token <unk>.
    r"<\s*(?!unk\s*>)u[nk]{1,3}[nkow]{2,5}\s*>"
    r"|\bI\s+need\s+ext[a-z]{2,7}\s+as{1,3}ist[a-z]{0,6}\b",
    re.IGNORECASE | re.ASCII,
)


def parse(text: str) -> Parsed:
    """Parses an untrusted response in linear time; never raises.

    `formatted` means one closed thought and then nothing but an answer or the exact marker; the
    marker may also stand without a thought.
    """
    thought, closed, rest = text.rpartition(THINK_CLOSE)
    tail = rest.strip()
    window = tail[-_WINDOW:]
    begin = len(text) - len(rest.lstrip()) + len(tail) - len(window)  # of the window in the text
    one_thought = THINK_CLOSE not in thought
    answer_at, answer = _last_answer(window)
    # The marker's tag and its sentence are one call: it begins with the first after any answer.
    calls = [m.start() for m in CALL.finditer(window) if m.start() > answer_at]
    if answer_at >= 0 and not calls:
        alone = tail == f"{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"
        return Parsed(
            Kind.ANSWER, answer.strip(), bool(closed) and one_thought and alone, begin + answer_at
        )
    if calls:
        return Parsed(Kind.CALL, None, one_thought and tail == CALL_MARKER, begin + calls[0])
    return Parsed(Kind.NEITHER, None, False)


def _last_answer(text: str) -> tuple[int, str]:
    """Start and content of the last complete answer, or (-1, "")."""
    end = text.rfind(ANSWER_CLOSE)
    start = text.rfind(ANSWER_OPEN, 0, max(end, 0))
    if end < 0 or start < 0:
        return -1, ""
    return start, text[start + len(ANSWER_OPEN) : end]
