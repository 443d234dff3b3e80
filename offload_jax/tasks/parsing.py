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
CALL_MARKER = "<unknown> I need external assistance </unknown>"

# A decision sits at the end; the cap bounds the work on hostile text.
_WINDOW = 4096
# Each pattern is linear: no two neighbouring repetitions can match the same characters.
_CALL = re.compile(
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
    thought, closed, tail = text.rpartition(THINK_CLOSE)
    tail = tail.strip()
    one_thought = THINK_CLOSE not in thought
    call_at = max((match.start() for match in _CALL.finditer(tail[-_WINDOW:])), default=-1)
    answer_at, answer = _last_answer(tail[-_WINDOW:])
    if answer_at > call_at:
        alone = tail == f"{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"
        return Parsed(Kind.ANSWER, answer.strip(), bool(closed) and one_thought and alone)
    if call_at >= 0:
        return Parsed(Kind.CALL, None, one_thought and tail == CALL_MARKER)
    return Parsed(Kind.NEITHER, None, False)


def _last_answer(text: str) -> tuple[int, str]:
    """Start and content of the last complete answer, or (-1, "")."""
    end = text.rfind(ANSWER_CLOSE)
    start = text.rfind(ANSWER_OPEN, 0, max(end, 0))
    if end < 0 or start < 0:
        return -1, ""
    return start, text[start + len(ANSWER_OPEN) : end]
