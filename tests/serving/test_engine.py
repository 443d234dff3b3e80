"""Continuous batching: an answer is what it would be alone; none is lost or given twice."""

import asyncio
import dataclasses
import gc
import threading
import weakref

import jax
import numpy as np
import pytest

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import init_params, param_shardings
from offload_jax.evaluation import fallback
from offload_jax.evaluation.decision import call_probabilities
from offload_jax.processes import fetch
from offload_jax.sampling.rollout import SamplingConfig, step_key
from offload_jax.sampling.sampler import Sampler
from offload_jax.serving.attempt import Question, QueueFullError
from offload_jax.serving.engine import EngineConfig, EngineStoppedError, SlotEngine
from offload_jax.sharding import MeshConfig, make_mesh
from offload_jax.tasks import make_task
from offload_jax.tasks.countdown.task import make_prompt
from offload_jax.training.loop import compilations
from tests.evaluation.samples import record

DEVICE = DeviceConfig(143, 16, 2, 2, 1, 8, 16)
SAMPLING = SamplingConfig(1, 12, 24, cache_tokens=24, shrink=1.0)
PROMPTS = [make_prompt(i, (3, 4, 5 + i, 2)[: 3 + i % 2], 12) for i in range(12)]


def task():
    """Countdown, but every seventh token or so ends a response: lengths differ."""
    made = make_task("countdown", "unused")
    stops = (made.vocabulary.stops[0], *range(40, 60))
    made.vocabulary = dataclasses.replace(made.vocabulary, stops=stops)
    return made


TASK = task()
CALL, _ = (TASK.vocabulary.tokenizer.token_to_id(text) for text in TASK.openings)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 1.5 * x, init_params(DEVICE, jax.random.key(3)))


@pytest.fixture
def sampler():
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield Sampler(TASK, DEVICE, SAMPLING, mesh)


def alone(params, sampler, question):
    """The project's own rollout of one question, with the settings that the question names."""
    temperature = question.temperature
    changed = dataclasses.replace(sampler.sampling, temperature=temperature)
    rolled = dataclasses.replace(sampler, sampling=changed)(
        params, [question.prompt], step_key(question.seed, 0)
    )[1]
    host = fetch(rolled)
    return host.tokens[0, 0, : host.lengths[0, 0]].tolist(), bool(host.stopped[0, 0])


def serve(params, sampler, questions, config=None):
    """All attempts, asked for at once, and the texts that were streamed."""

    async def one(ticket):
        streamed = [piece async for piece in ticket]
        return await ticket.attempt(), streamed

    async def everybody(engine):
        return await asyncio.gather(*[one(engine.submit(question)) for question in questions])

    with SlotEngine(params, sampler, config or EngineConfig(slots=4, chunk=3)) as engine:
        return asyncio.run(everybody(engine))


QUESTIONS = [
    *[Question(prompt) for prompt in PROMPTS],
    *[Question(prompt, 1.0, seed) for seed, prompt in enumerate(PROMPTS)],
    *[Question(prompt, 0.4, seed) for seed, prompt in enumerate(PROMPTS)],
    *[Question(PROMPTS[0], 1.0, seed) for seed in (-1, 2**31, 2**40 + 7)],
]


def test_every_response_is_the_rollouts_own_whoever_else_is_served(params, sampler):
    served = serve(params, sampler, QUESTIONS)
    for question, (attempt, streamed) in zip(QUESTIONS, served, strict=True):
        tokens, stopped = alone(params, sampler, question)
        assert attempt.question is question
        assert (list(attempt.tokens), attempt.ended) == (tokens, stopped)
        text = TASK.vocabulary.tokenizer.decode(tokens[: len(tokens) - stopped], False)
        assert attempt.text == "".join(streamed) == text
        assert attempt.prompt_tokens == len(
            TASK.vocabulary.encode(TASK.device_text(question.prompt))
        )
        assert attempt.waited >= 0 and attempt.seconds > 0
    lengths = {len(attempt.tokens) for attempt, _ in served}
    assert len(lengths) > 5 and {True, False} == {attempt.ended for attempt, _ in served}
    assert max(len(streamed) for _, streamed in served) > 4


def test_a_response_ends_at_the_tokens_that_were_asked_for(params, sampler):
    whole = alone(params, sampler, Question(PROMPTS[0]))[0]
    for most in (1, 2, 5):
        ((attempt, _),) = serve(params, sampler, [Question(PROMPTS[0], max_tokens=most)])
        assert list(attempt.tokens) == whole[:most]


def test_nothing_is_compiled_after_warm_up(params, sampler):
    async def traffic(engine):
        before = compilations()
        tickets = [engine.submit(question) for question in QUESTIONS]
        tickets[3].cancel()
        await tickets[4].attempt()
        tickets[5].cancel()
        attempts = await asyncio.gather(*[tickets[i].attempt() for i in range(6, len(tickets))])
        # The longest prompt that there can be, then a client who is alone.
        tokens = (30,) * SAMPLING.response_tokens
        text = TASK.vocabulary.tokenizer.decode(tokens)
        longest = dataclasses.replace(attempts[1], text=text, tokens=tokens)
        fallbacks = [engine.fallback(attempt) for attempt in [*attempts, longest]]
        await asyncio.gather(*fallbacks)
        await engine.submit(QUESTIONS[0]).attempt()
        return compilations() - before

    began = compilations()
    # A size of its own, so that this engine compiles programs and no other has done it before.
    with SlotEngine(params, sampler, EngineConfig(slots=5, chunk=2)) as engine:
        assert compilations() > began
        assert asyncio.run(traffic(engine)) == 0


def test_slots_on_two_devices_give_the_same_tokens_and_compile_nothing(params, sampler):
    one = [list(attempt.tokens) for attempt, _ in serve(params, sampler, QUESTIONS)]
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    spread = jax.device_put(params, param_shardings(DEVICE, mesh))
    with jax.set_mesh(mesh):
        engine = SlotEngine(
            spread, dataclasses.replace(sampler, mesh=mesh), EngineConfig(slots=4, chunk=3)
        )

    async def traffic():
        before = compilations()
        tickets = [engine.submit(question) for question in QUESTIONS]
        attempts = [await ticket.attempt() for ticket in tickets]
        return compilations() - before, [list(attempt.tokens) for attempt in attempts]

    with engine:
        assert len(engine._slots.tokens.sharding.device_set) == 2
        assert asyncio.run(traffic()) == (0, one)


def records_of(attempts):
    """What evaluation would have noted of them."""
    rows = []
    for attempt in attempts:
        tokens = {"response_tokens": list(attempt.tokens), "device_tokens": len(attempt.tokens)}
        changes = {"response": attempt.text, **tokens}
        kind = "call" if attempt.called else "wrong"
        rows.append(dataclasses.replace(record(attempt.question.prompt.id, kind), **changes))
    return rows


def some_that_call(params, sampler):
    """Attempts at a temperature at which random weights sometimes call."""
    hot = [Question(prompt, 3.0, seed) for prompt in PROMPTS for seed in range(40)]
    config = EngineConfig(slots=4, queue=len(hot), chunk=3)
    attempts = [attempt for attempt, _ in serve(params, sampler, hot, config)]
    calling = [attempt for attempt in attempts if attempt.called]
    assert len({len(attempt.tokens) for attempt in calling}) > 2
    return attempts, calling


def test_the_decision_is_read_as_in_evaluation(params, sampler):
    attempts, calling = some_that_call(params, sampler)
    others = [attempt for attempt in attempts if not attempt.called]
    chosen = [*calling[:6], *others[:6]]
    T = SAMPLING.response_tokens
    tokens = np.zeros((len(chosen), 1, T), np.int32)
    for row, attempt in zip(tokens[:, 0], chosen, strict=True):
        row[: len(attempt.tokens)] = attempt.tokens
    parsed = [TASK.parse(attempt.text) for attempt in chosen]
    expected = call_probabilities(
        params,
        DEVICE,
        TASK,
        sampler.encode([attempt.question.prompt for attempt in chosen]),
        tokens,
        np.array([[len(attempt.tokens)] for attempt in chosen]),
        parsed,
    )
    ours = [attempt.call_probability for attempt in chosen]
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.std(ours) > 1e-3
    assert [attempt.answer for attempt in chosen] == [found.answer for found in parsed]


def test_a_fallback_is_evaluations_own(params, sampler):
    _, calling = some_that_call(params, sampler)
    prompts = [attempt.question.prompt for attempt in calling]
    expected = fallback._continued(
        params, sampler, prompts, records_of(calling), range(len(calling))
    )

    async def all_of_them(engine):
        return await asyncio.gather(*[engine.fallback(attempt) for attempt in calling])

    with SlotEngine(params, sampler, EngineConfig(slots=2, queue=1, chunk=4)) as engine:
        given = asyncio.run(all_of_them(engine))
    assert [attempt.text for attempt in given] == expected
    assert len(set(expected)) > 1
    for before, after in zip(calling, given, strict=True):
        assert after.question is before.question
        assert after.call_probability == before.call_probability
        assert after.answer == TASK.parse(after.text).answer


def test_one_more_than_the_queue_holds_is_refused_and_those_who_leave_make_room(params, sampler):
    engine = SlotEngine(params, sampler, EngineConfig(slots=2, queue=3))

    async def main():
        tickets = [engine.submit(question) for question in QUESTIONS[:3]]
        with pytest.raises(QueueFullError) as refused:
            engine.submit(QUESTIONS[3])
        assert refused.value.retry_after >= 1 and engine.waiting == 3
        tickets[1].cancel()
        tickets[1].cancel()
        tickets.append(engine.submit(QUESTIONS[3]))  # before the engine has even begun
        ran, admit = [], engine._admit
        engine._admit = lambda slot, prompt, question, limit: (
            ran.append(question),
            admit(slot, prompt, question, limit),
        )
        engine.start()
        for i in (0, 2, 3):
            assert (await tickets[i].attempt()).question is QUESTIONS[i]
        with pytest.raises(asyncio.CancelledError):
            await tickets[1].attempt()
        assert [piece async for piece in tickets[1]] == []
        # Besides what warmed the engine up.
        assert [q for q in ran if q.prompt.question] == [QUESTIONS[i] for i in (0, 2, 3)]

    asyncio.run(main())
    engine.close()


class Gated(SlotEngine):
    """Takes a step whenever it is told to."""

    gate = None

    def _advance(self, rows):
        if self.gate is not None:
            self.gate.acquire()
        super()._advance(rows)


def gated(params, sampler, config):
    engine = Gated(params, sampler, config)
    engine.start()
    engine.gate = threading.Semaphore(0)
    return engine


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")


def longest(params, sampler):
    """Greedy questions with long responses, the longest first."""
    lengths = [len(alone(params, sampler, question)[0]) for question in QUESTIONS[:12]]
    order = np.argsort(lengths)[::-1]
    assert lengths[order[5]] > 4
    return [QUESTIONS[i] for i in order[:6]]


def test_a_slot_is_free_again_one_step_after_its_client_left(params, sampler):
    engine = gated(params, sampler, EngineConfig(slots=1, chunk=1))
    long = longest(params, sampler)[0]

    async def main():
        leaving, staying = engine.submit(long), engine.submit(QUESTIONS[1])
        await until(lambda: engine.running == 1)
        engine.gate.release()
        first = await leaving.__aiter__().__anext__()
        assert first and engine.waiting == 1
        leaving.cancel()
        engine.gate.release()
        await until(lambda: engine.waiting == 0)
        engine.gate.release(100)
        attempt = await staying.attempt()
        assert list(attempt.tokens) == alone(params, sampler, QUESTIONS[1])[0]

    asyncio.run(main())
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_reaches_everybody_and_the_engine_says_so(params, sampler):
    engine = gated(params, sampler, EngineConfig(slots=2))
    assert engine.healthy

    def broken(*_):
        raise MemoryError("out of device memory")

    async def main():
        tickets = [engine.submit(question) for question in QUESTIONS[:5]]
        await until(lambda: engine.running == 2)
        engine._attempt = broken
        engine.gate.release(100)
        for ticket in tickets:
            with pytest.raises(EngineStoppedError, match="out of device memory") as told:
                await asyncio.wait_for(ticket.attempt(), 10)
            assert isinstance(told.value.__cause__, MemoryError)
            with pytest.raises(EngineStoppedError):
                async for _ in ticket:
                    pass
        await until(lambda: not engine.healthy)
        with pytest.raises(EngineStoppedError, match="out of device memory"):
            engine.submit(QUESTIONS[0])

    asyncio.run(main())
    engine.close()


@pytest.mark.parametrize("begun", [True, False])
def test_closing_ends_whoever_waits(params, sampler, begun):
    config = EngineConfig(slots=2, chunk=1)
    engine = gated(params, sampler, config) if begun else SlotEngine(params, sampler, config)
    questions = longest(params, sampler)

    async def main():
        tickets = [engine.submit(question) for question in questions]
        if begun:
            await until(lambda: engine.running == 2)
            threading.Timer(0.1, engine.gate.release).start()  # the step that is under way
        engine.close()
        for ticket in tickets:
            with pytest.raises(EngineStoppedError):
                await asyncio.wait_for(ticket.attempt(), 10)
        with pytest.raises(EngineStoppedError):
            engine.submit(QUESTIONS[0])
        assert not engine.healthy

    asyncio.run(main())


def test_what_cannot_be_asked_is_refused_before_it_is_queued(params, sampler):
    engine = SlotEngine(params, sampler)
    long = make_prompt(0, tuple(range(1, 12)), 12)

    async def main():
        for question, message in [
            (Question(long), r"has 15 tokens; this device LLM takes 1 to 12"),
            (Question(PROMPTS[0], max_tokens=0), "max_tokens is 0"),
            (Question(PROMPTS[0], temperature=-1.0), "temperature is -1"),
            (Question(PROMPTS[0], temperature=float("nan")), "temperature is nan"),
            (Question(dataclasses.replace(PROMPTS[0], id=2**31)), "id is 2147483648"),
        ]:
            with pytest.raises(ValueError, match=message):
                engine.submit(question)
        assert engine.waiting == 0

    asyncio.run(main())


def test_nothing_is_left_of_questions_that_were_served(params, sampler):
    async def round_of(engine, questions):
        tickets = [engine.submit(question) for question in questions]
        tickets[-1].cancel()
        attempts = await asyncio.gather(*[ticket.attempt() for ticket in tickets[:-1]])
        await engine.fallback(attempts[0])
        await until(lambda: engine.running == 0)
        return [weakref.ref(ticket) for ticket in tickets]

    async def main(engine):
        await round_of(engine, QUESTIONS[:2])
        gc.collect()
        arrays = len(jax.live_arrays())
        left = [await round_of(engine, QUESTIONS) for _ in range(3)]
        gc.collect()
        assert not any(ticket() for tickets in left for ticket in tickets)
        assert len(jax.live_arrays()) == arrays

    with SlotEngine(params, sampler, EngineConfig(slots=4, chunk=3)) as engine:
        asyncio.run(main(engine))
