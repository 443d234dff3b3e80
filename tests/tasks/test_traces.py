import collections
import operator
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_jax.tasks.countdown import solver
from offload_jax.tasks.countdown.task import make_prompt
from offload_jax.tasks.countdown.tokenizer import make_tokenizer
from offload_jax.tasks.countdown.traces import TraceConfig, sample_trace, sample_traces
from offload_jax.tasks.countdown.verifier import verify
from offload_jax.tasks.parsing import parse
from offload_jax.tasks.task import Kind

_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_TOKENIZER = make_tokenizer()


def _prompts(count, seed=0):
    rng = random.Random(seed)
    prompts = []
    while len(prompts) < count:
        numbers = sorted(rng.randint(1, 25) for _ in range(rng.choice([3, 3, 4])))
        target = solver.random_combination(numbers, rng)[-1].result
        if 10 <= target <= 99:
            prompts.append(make_prompt(len(prompts), numbers, target))
    return prompts


@st.composite
def _configs(draw):
    share = st.floats(0, 1)
    return TraceConfig(
        draw(st.integers(34, 300)), draw(share), draw(share), draw(st.integers(0, 30))
    )


def _tries(thought: str) -> list[tuple[str, int]]:
    """(steps, distance from the target) of each try."""
    tries = re.findall(r"(.+?) off (\d+) ?", thought)
    assert "".join(f"{steps} off {off} " for steps, off in tries).strip() == thought
    return [(steps, int(off)) for steps, off in tries]


@settings(deadline=None)
@given(st.integers(0, 2**32), _configs())
def test_every_step_is_right_and_a_try_says_how_far_it_is_off_the_target(seed, config):
    (prompt,) = _prompts(1, seed)
    trace = sample_trace(prompt, random.Random(seed), config)
    thought, _, _ = trace.partition(" </think> ")
    tries = _tries(thought)
    assert tries
    for steps, off in tries:
        left = list(prompt.gold["numbers"])
        for step in steps.split(" , "):
            a, op, b, equals, result = step.split()
            assert equals == "=" and _OPERATORS[op](int(a), int(b)) == int(result)
            assert int(a) >= int(b) and 1 <= int(result) <= 119
            left.remove(int(a))
            left.remove(int(b))
            left.append(int(result))
        assert len(left) == 1
        assert off == abs(left[0] - prompt.gold["target"])
    assert all(off > 0 for _, off in tries[:-1])


@settings(deadline=None)
@given(st.integers(0, 2**32), _configs())
def test_a_hit_is_followed_by_a_right_answer_and_a_miss_by_a_wrong_one_or_a_call(seed, config):
    (prompt,) = _prompts(1, seed)
    trace = sample_trace(prompt, random.Random(seed), config)
    parsed = parse(trace)
    assert parsed.formatted
    solved = " off 0 </think>" in trace
    if parsed.kind == Kind.ANSWER:
        assert verify(parsed.answer, prompt.gold["numbers"], prompt.gold["target"]) == solved
    else:
        assert parsed.kind == Kind.CALL and not solved


@settings(deadline=None)
@given(st.integers(0, 2**32), _configs())
def test_a_trace_with_its_end_fits_the_token_limit_and_the_vocabulary(seed, config):
    (prompt,) = _prompts(1, seed)
    encoded = _TOKENIZER.encode(sample_trace(prompt, random.Random(seed), config) + " <eos>")
    assert len(encoded.ids) <= config.max_tokens
    assert "<unk>" not in encoded.tokens
    assert _TOKENIZER.decode(encoded.ids) + " <eos>" == " ".join(encoded.tokens)


@pytest.mark.parametrize(("numbers", "tokens"), [((3, 7, 25), 24), ((3, 7, 11, 25), 34)])
def test_the_smallest_limit_is_used_to_the_last_token(numbers, tokens):
    lengths = []
    for target in solver.reachable(numbers):
        trace = sample_trace(
            make_prompt(0, numbers, target), random.Random(0), TraceConfig(tokens, 1, 0)
        )
        lengths.append(len(trace.split()) + 1)
    assert max(lengths) == tokens
    with pytest.raises(ValueError, match=f"which takes {tokens}"):
        sample_trace(make_prompt(0, numbers, 46), random.Random(0), TraceConfig(tokens - 1))


def _shares(**settings) -> dict[str, float]:
    prompts = _prompts(1000)
    outcomes = collections.Counter()
    for trace in sample_traces(prompts, random.Random(1), TraceConfig(**settings)):
        kind = parse(trace).kind
        outcomes["call" if kind == Kind.CALL else "right" if " off 0 " in trace else "wrong"] += 1
    return {outcome: count / len(prompts) for outcome, count in outcomes.items()}


def test_the_settings_decide_how_a_search_ends():
    assert _shares(solve=1) == {"right": 1.0}
    lucky = _shares(max_tokens=48, solve=0)
    assert set(lucky) == {"right", "call"} and lucky["right"] < 0.4
    assert "call" not in _shares(solve=0, near=119)
    assert "wrong" not in _shares(solve=0, impatience=0.5)
    patient, impatient = _shares(impatience=0.1, near=12), _shares(impatience=0.5, near=12)
    assert patient["right"] > impatient["right"] + 0.1
    assert min(impatient.values()) > 0.1


def test_an_impatient_search_ends_sooner_and_at_the_latest_when_it_is_certain_to():
    tries = [
        trace.count(" off ")
        for trace in sample_traces(_prompts(500), random.Random(0), TraceConfig(300, 0, 0.25))
    ]
    assert max(tries) == 4
    assert min(tries) == 1


def test_a_search_that_fails_answers_when_near_and_calls_when_far():
    for trace in sample_traces(_prompts(300), random.Random(0), TraceConfig(128, 0, 0.5, 12)):
        off = _tries(trace.partition(" </think> ")[0])[-1][1]
        assert (parse(trace).kind == Kind.ANSWER) == (off <= 12)


def test_the_solution_comes_at_every_position():
    positions = collections.Counter()
    for trace in sample_traces(_prompts(500), random.Random(0), TraceConfig(128, 1, 0)):
        positions[trace.count(" off ") - 1] += 1
    assert min(positions[i] for i in range(5)) > 20


def test_tries_come_in_a_fixed_order():
    for trace in sample_traces(_prompts(300), random.Random(0), TraceConfig(128, 0, 0)):
        firsts = [steps.split()[:3] for steps, _ in _tries(trace.partition(" </think> ")[0])]
        keys = [(-int(a), -int(b), "+-*/".index(op)) for a, op, b in firsts]
        assert keys == sorted(keys)


def test_a_search_never_repeats_a_try():
    repeated = total = 0
    for trace in sample_traces(_prompts(300), random.Random(0), TraceConfig(128, 0, 0)):
        tries = _tries(trace.partition(" </think> ")[0])
        repeated += len(tries) - len(set(tries))
        total += len(tries)
    assert repeated == 0 and total > 1000


def test_the_same_random_state_gives_the_same_traces():
    prompts = _prompts(20)
    draw = lambda seed: sample_traces(prompts, random.Random(seed), TraceConfig())  # noqa: E731
    assert draw(0) == draw(0) != draw(1)


def test_impossible_settings_are_refused_in_words():
    with pytest.raises(ValueError, match=r"solve is 1\.5"):
        TraceConfig(solve=1.5)
    with pytest.raises(ValueError, match="near is -1"):
        TraceConfig(near=-1)
    with pytest.raises(ValueError, match=r"config\.start\.traces\.max_tokens = 20"):
        sample_trace(_prompts(1)[0], random.Random(0), TraceConfig(max_tokens=20))


def test_five_thousand_traces_take_less_than_a_second():
    prompts = _prompts(1000)
    times = []
    for seed in range(5):
        start = time.perf_counter()
        sample_traces(prompts, random.Random(seed), TraceConfig())
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2
