"""What the decision of a response is: labelled responses, calls in all spellings, hostile text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_jax.tasks.math.answers import parse
from offload_jax.tasks.parsing import CALL_MARKER
from offload_jax.tasks.task import Kind


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # A box.
        ("Step 1: add.\nSo it is $\\boxed{42}$.", "42"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{\\text{a } b}", "\\text{a } b"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed {42}", "42"),
        ("\\fbox{41} \\boxed{42}", "42"),
        ("\\boxed 5.", "5"),
        ("\\boxed{}", ""),
        ("\\boxed{42} and then $7$ and 8", "42"),
        ("\\boxed{41} then \\boxed{42", "41"),
        ("\\boxed{1} </think> it is \\boxed{2}", "2"),
        (f"{CALL_MARKER} but no: \\boxed{{42}}", "42"),
        ("\\boxed{\nx = 3\n}", "x = 3"),
        # The last formula.
        ("It is $x=4$ or $x=5$.", "x=5"),
        ("It is \\(\\frac{1}{2}\\).", "\\frac{1}{2}"),
        ("So\n\\[x = 5\\]\nas wanted, in 3 steps", "x = 5"),
        ("So\n$$\nx^2\n$$", "x^2"),
        ("$5\\text{ apples}$", "5\\text{ apples}"),
        ("\\boxedtext{1} $2$", "2"),
        # The last number.
        ("The answer is 42.", "42"),
        ("So 1,234 apples", "1,234"),
        ("It is -3.5 degrees", "-3.5"),
        ("The share is 3/4, I think", "3/4"),
        ("He pays $5 and she pays $7 more, so $12.", "12"),
        ("It costs \\$18.", "18"),
        ("**18**", "18"),
        ("a total of 50%", "50%"),
        ("\\boxed{42", "42"),
        ("x2 or 7", "7"),
    ],
)
def test_the_answer_is_in_the_last_box_or_formula_or_number(text, answer):
    parsed = parse(text)
    assert (parsed.kind, parsed.answer) == (Kind.ANSWER, answer)


@pytest.mark.parametrize(
    "text",
    [
        CALL_MARKER,
        f"Step 1: $x=2$.\nStep 2: \\boxed{{7}} seems wrong.\n{CALL_MARKER}",
        f"\\boxed{{7}} {CALL_MARKER}",
        f"x </think> {CALL_MARKER} .",
        "Step 6: I need external assistance.",
        "Step 6: I need external assistance",
        "I  need\nexternal assistance",
        "**I need external assistance**",
        "<unknown>",
        "<unknown> I need help </unknown>",
        "<unkown> I need external assistance </unkown>",
        "<unknwon> I need external assistance </unknwon>",
        "<uknown>",
        "< unknown >",
        "<Unknown> I Need External Assistance </Unknown>",
        "<unknown> I need external assistence </unknown>",
        "i need extrenal asistance",
        "<unknown>I need external assistance",
        "I need external assistance </unknown>",
        "\\boxed{<unknown> I need external assistance </unknown>}",
        "\\boxed{\\text{I need external assistance}}",
        "The value is 4 or 5 - I need external assistances!",
    ],
)
def test_a_marker_after_any_box_is_a_call_however_it_is_spelt(text):
    assert (parse(text).kind, parse(text).answer) == (Kind.CALL, None)


@pytest.mark.parametrize(
    "text",
    ["", " ", "I cannot solve this.", "<unk>", "They need external assistance", "</think>",
     "\\boxed", "x and y", "$", "No external assistance is needed"],
)  # fmt: skip
def test_without_a_decision_it_is_neither(text):
    assert parse(text).kind == Kind.NEITHER and parse(text).at is None


def test_the_form_is_a_box_or_the_exact_marker():
    assert parse("so \\boxed{4}").formatted and parse(f"x = 4. {CALL_MARKER}\n").formatted
    for text in ("so $4$", "so 4", "I need external assistance", f"{CALL_MARKER} or not", ""):
        assert not parse(text).formatted, text


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("so $\\boxed{4}$ it is", "\\boxed{4}"),
        (f"so {CALL_MARKER}", "<unknown>"),
        ("a </think> b \\boxed{4}", "\\boxed{4}"),
        ("x" * 50_000 + " $7$ ", "$7$"),
        ("so 17 it is", "17"),
        (f"\\boxed{{1}} or {CALL_MARKER}", "<unknown>"),
    ],
)
def test_the_decision_is_located_in_the_text(text, begins):
    assert text[parse(text).at :].startswith(begins)


@settings(deadline=None)
@given(st.lists(st.sampled_from(
    ["\\boxed", "{", "}", "$", "\\(", "\\)", "1", " ", "\\", "</think>", "<unknown>", "x", "\n"]
), max_size=30).map("".join) | st.text())  # fmt: skip
def test_only_answers_carry_an_answer(text):
    parsed = parse(text)
    assert (parsed.answer is not None) == (parsed.kind == Kind.ANSWER)
    assert (parsed.at is None) == (parsed.kind == Kind.NEITHER)


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "\\boxed", "$", "$$", "$ ", "\\(", "\\[", "{", "}", "\\", "1", "1,", "1,000,",
     "1/", "-", "<", "I need ", "</think>", "\\text{", "$a", "1."],
)  # fmt: skip
def test_a_megabyte_of_hostile_text_parses_in_no_time(piece):
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    parse(text)
    assert time.process_time() - start < 0.3
