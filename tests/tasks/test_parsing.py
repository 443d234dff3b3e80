import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_jax.tasks.parsing import CALL_MARKER, parse
from offload_jax.tasks.task import Kind


@pytest.mark.parametrize(
    ("text", "answer", "formatted"),
    [
        ("3 * 7 = 21 yes </think> <answer> 3 * 7 </answer>", "3 * 7", True),
        ("a </think>\n<answer>3*7</answer>\n", "3*7", True),
        ("</think> <answer></answer>", "", True),
        ("<answer> 3 * 7 </answer>", "3 * 7", False),
        ("a </think> so it is <answer> 3 * 7 </answer>", "3 * 7", False),
        ("a </think> <answer> 3 * 7 </answer> done", "3 * 7", False),
        ("a </think> b </think> <answer> 1 </answer>", "1", False),
        ("a </think> <answer> 1 </answer> <answer> 2 </answer>", "2", False),
        ("<answer> 1 </answer> </think> <answer> 2 </answer>", "2", True),
        ("</think> <answer> <answer> 2 </answer>", "2", False),
    ],
)
def test_the_last_answer_after_the_thought_is_the_answer(text, answer, formatted):
    parsed = parse(text)
    assert (parsed.kind, parsed.answer, parsed.formatted) == (Kind.ANSWER, answer, formatted)


@pytest.mark.parametrize(
    ("text", "formatted"),
    [
        (f"a no </think> {CALL_MARKER}", True),
        (CALL_MARKER, True),
        (f"a </think> {CALL_MARKER} .", False),
        ("a </think> <unkown> I need external assistance </unkown>", False),
        ("a </think> <uknown> I need help", False),
        ("a </think> <Unknown>", False),
        ("a </think> <unknown> I need external assistence </unknown>", False),
        ("Step 6: I need external assistance.", False),
        ("I  need\nexternal assistance", False),
        ("a </think> i need extrenal asistance", False),
    ],
)
def test_a_misspelt_or_untagged_marker_is_a_call(text, formatted):
    parsed = parse(text)
    assert (parsed.kind, parsed.answer, parsed.formatted) == (Kind.CALL, None, formatted)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "</think>",
        "3 * 7 = 21 no",
        "a </think> <answer> 3 * 7",
        "a </think> 3 * 7 </answer>",
        "</answer> <answer>",
        "<answer> 3 * 7 </answer> </think>",
        f"{CALL_MARKER} </think> 46",
        "it is <unk> to me",
        "<answer> 1 </answer>" + "." * 5000,
        "they need external assistance",
    ],
)
def test_a_response_without_a_decision_at_its_end_is_neither(text):
    assert parse(text).kind == Kind.NEITHER


def test_of_an_answer_and_a_call_the_last_wins():
    assert parse(f"{CALL_MARKER} <answer> 1 </answer>").kind == Kind.ANSWER
    assert parse(f"<answer> 1 </answer> {CALL_MARKER}").kind == Kind.CALL
    assert parse(f"<answer> {CALL_MARKER} </answer>").kind == Kind.CALL


_PIECES = st.sampled_from(
    [
        "<answer>",
        "</answer>",
        "</think>",
        "<unknown>",
        "</unknown>",
        "I need external",
        "1",
        " ",
        "assistance",
        "<unk",
        "<",
        ">",
        "é",
    ]
)


@settings(deadline=None)
@given(st.lists(_PIECES, max_size=30).map("".join) | st.text())
def test_only_answers_carry_an_answer_and_only_decisions_are_formatted(text):
    parsed = parse(text)
    assert (parsed.answer is not None) == (parsed.kind == Kind.ANSWER)
    assert not (parsed.formatted and parsed.kind == Kind.NEITHER)


@pytest.mark.parametrize(
    "piece",
    ["<", "<answer>", "</answer>", "</think>", "<unknown>", "<u", "n", "I need ", "I ", " ", "<  "],
)
def test_a_megabyte_of_hostile_text_parses_in_no_time(piece):
    text = piece * (1_000_000 // len(piece))
    start = time.perf_counter()
    parse(text)
    assert time.perf_counter() - start < 0.1


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("try </think> <answer> 1 + 2 </answer>", "<answer>"),
        ("try </think>  \n <unknown> I need external assistance </unknown>", "<unknown>"),
        ("<answer> 1 </answer> no, I need external assistance", "I need"),
        ("x" * 9000 + " </think> " + " " * 5000 + "<answer> 1 </answer>  ", "<answer>"),
        ("x" * 9000 + "<answer> 1 </answer>", "<answer>"),
    ],
)
def test_the_decision_is_located_in_the_text(text, begins):
    assert text[parse(text).at :].startswith(begins)
    assert parse(text).at == text.rindex(begins)


def test_without_a_decision_there_is_no_place_for_it():
    assert parse("thinking </think> and then").at is None
