"""The decision, and how it is carried out."""

import asyncio
import threading

import pytest

from offload_jax.cloud.protocol import BUDGET, Answer, CloudError
from offload_jax.serving.attempt import Question
from offload_jax.serving.pair import CloudFailedError, Decision, Gate, Pair, Terms, decide
from offload_jax.tasks import parsing
from offload_jax.tasks.task import Prompt

QUESTION = Question(Prompt(1, "Make 46 from 3, 7 and 25.", {}))


def led(fakes, engine, cloud, terms=None, threshold=None, patience=30.0):
    """Reply and what was told on the way."""
    gate, told = Gate(cloud, 2, patience), []
    pair = Pair(engine, gate, parsing.parse, threshold)

    async def lead():
        return await pair.answer(engine.submit(QUESTION), terms or Terms(), told.append)

    try:
        return asyncio.run(lead()), told
    finally:
        gate.close()


@pytest.mark.parametrize(
    ("text", "p", "threshold", "expected"),
    [
        ("CALL", 0.9, None, (True, "called")),
        ("ANSWER", 0.9, None, (False, "answered")),
        ("work without an end", 0.9, None, (False, "no answer")),
        ("CALL", 0.9, 0.5, (True, "called")),
        ("CALL", 0.5, 0.5, (False, "P(call) not above the dial")),  # strictly above
        ("ANSWER", 0.6, 0.5, (True, "P(call) above the dial")),
        ("ANSWER", 0.4, 0.5, (False, "answered")),
        ("ANSWER", 0.0, -1.0, (True, "P(call) above the dial")),  # all
        ("CALL", 1.0, 1.0, (False, "P(call) not above the dial")),  # none
        ("CALL", None, 0.5, (True, "called")),  # without a score the device decides
    ],
)
def test_the_device_decides_or_the_dial_in_its_place(fakes, text, p, threshold, expected):
    attempt = fakes.attempted(QUESTION, getattr(fakes, text, text), p)
    assert decide(attempt, threshold) == Decision(*expected, p)


def test_an_answer_stays_on_the_device(fakes):
    cloud = fakes.FakeCloud()
    reply, told = led(fakes, fakes.FakeEngine(), cloud)
    assert reply.text == "25 + 3 * 7" and cloud.asked == []
    assert told == [Decision(False, "answered", 0.25)]
    receipt = reply.receipt
    assert (receipt.served_by, receipt.called, receipt.reason) == ("device", False, "answered")
    assert (receipt.device_prompt_tokens, receipt.device_completion_tokens) == (7, 14)
    assert receipt.cloud_completion_tokens is None and receipt.cost == 0.0
    assert (receipt.device_seconds, receipt.waited) == (0.5, 0.25)
    assert not receipt.degraded and not receipt.cached and receipt.cloud_seconds is None


def test_a_call_is_answered_by_the_cloud(fakes):
    cloud = fakes.FakeCloud()
    reply, _ = led(fakes, fakes.FakeEngine(fakes.CALL), cloud)
    assert reply.text == "46" and cloud.asked == ["Make 46 from 3, 7 and 25."]
    receipt = reply.receipt
    assert (receipt.served_by, receipt.called, receipt.reason) == ("cloud", True, "called")
    assert (receipt.cloud_prompt_tokens, receipt.cloud_completion_tokens) == (11, 5)
    assert receipt.cost == 0.002 and receipt.cloud_seconds >= 0 and not receipt.degraded


def test_what_was_there_already_costs_nothing(fakes):
    cloud = fakes.FakeCloud(Answer("46", None, 11, 5, 0.002, cached=True))
    receipt = led(fakes, fakes.FakeEngine(fakes.CALL), cloud)[0].receipt
    assert receipt.cached and receipt.cost == 0.0 and receipt.cloud_completion_tokens == 5


def test_a_price_that_is_not_known_is_not_zero(fakes):
    cloud = fakes.FakeCloud(Answer("46", None, 11, 5, None))
    assert led(fakes, fakes.FakeEngine(fakes.CALL), cloud)[0].receipt.cost is None


@pytest.mark.parametrize(
    ("failure", "cost"), [(BUDGET, 0.0), ("circuit open", 0.0), ("timeout", None)]
)
def test_what_was_not_sent_costs_nothing(fakes, failure, cost):
    cloud = fakes.FakeCloud(Answer(None, failure))
    assert led(fakes, fakes.FakeEngine(fakes.CALL), cloud)[0].receipt.cost == cost


def test_an_answer_that_is_not_in_its_form_is_given_whole(fakes):
    reply, _ = led(fakes, fakes.FakeEngine(fakes.CALL), fakes.FakeCloud(Answer(" I think 46. ")))
    assert reply.text == "I think 46."
    unfinished = fakes.FakeEngine("<think> 3 + 7 = 10")
    reply, _ = led(fakes, unfinished, fakes.FakeCloud())
    assert reply.text == "<think> 3 + 7 = 10" and reply.receipt.reason == "no answer"


@pytest.mark.parametrize("failure", ["timeout", BUDGET, "circuit open"])
def test_where_the_cloud_fails_the_device_gives_its_best_answer_and_says_so(fakes, failure):
    cloud = fakes.FakeCloud(Answer(None, failure, cost=0.001))
    reply, _ = led(fakes, fakes.FakeEngine(fakes.CALL), cloud)
    assert reply.text == "3 + 7"  # what it answers instead of its call
    receipt = reply.receipt
    assert receipt.degraded and receipt.called and receipt.served_by == "device"
    assert receipt.reason == failure and receipt.cost == 0.001
    assert receipt.device_seconds > 0.5  # those of the second answer are added


def test_a_second_answer_is_counted_and_told(fakes):
    engine, cloud = fakes.FakeEngine(fakes.CALL), fakes.FakeCloud(Answer(None, "timeout"))
    reply, told = led(fakes, engine, cloud, Terms(stream_device_work=True))
    assert reply.receipt.device_completion_tokens == len(fakes.CALL.split()) + 5
    assert told[-1] == f"\n\n{engine.second}" and reply.work.endswith(told[-1])


def test_where_the_dial_called_and_the_cloud_fails_the_devices_own_answer_stands(fakes):
    cloud = fakes.FakeCloud(Answer(None, "timeout"))
    reply, _ = led(fakes, fakes.FakeEngine(p=0.9), cloud, threshold=0.5)
    assert reply.text == "25 + 3 * 7" and reply.receipt.degraded


def test_a_client_may_want_an_error_instead(fakes):
    cloud = fakes.FakeCloud(Answer(None, "timeout"))
    with pytest.raises(CloudFailedError, match="timeout") as caught:
        led(fakes, fakes.FakeEngine(fakes.CALL), cloud, Terms(on_cloud_failure="error"))
    assert caught.value.receipt.degraded and caught.value.receipt.device_completion_tokens > 0


@pytest.mark.parametrize("error", [CloudError("not in cache"), RuntimeError("a bug")])
def test_a_cloud_that_raises_has_failed(fakes, error):
    reply, _ = led(fakes, fakes.FakeEngine(fakes.CALL), fakes.FakeCloud(error))
    assert reply.receipt.degraded and reply.receipt.reason == "unavailable"


def test_a_slow_cloud_is_not_waited_for(fakes):
    free = threading.Event()

    class Slow(fakes.FakeCloud):
        def answer(self, prompts):
            free.wait(20)
            return super().answer(prompts)

        def close(self):
            free.set()

    reply, _ = led(fakes, fakes.FakeEngine(fakes.CALL), Slow(), patience=0.05)
    assert reply.receipt.degraded and reply.receipt.reason == "timeout"


def test_the_dial_takes_a_call_back(fakes):
    cloud = fakes.FakeCloud()
    reply, _ = led(fakes, fakes.FakeEngine(fakes.CALL, p=0.4), cloud, threshold=0.5)
    assert reply.text == "3 + 7" and cloud.asked == []
    assert not reply.receipt.degraded and not reply.receipt.called


@pytest.mark.parametrize("threshold", [None, -1.0])
@pytest.mark.parametrize("failure", ["device", "error"])
def test_device_only_reaches_no_method_of_the_cloud(fakes, threshold, failure):
    class Untouchable:
        def __getattribute__(self, name):
            if name != "close":
                raise AssertionError(f"the cloud's {name} was reached")
            return lambda: None

    terms = Terms(device_only=True, on_cloud_failure=failure)
    engine = fakes.FakeEngine(fakes.CALL)
    reply, _ = led(fakes, engine, Untouchable(), terms, threshold)
    assert reply.text == "3 + 7"
    receipt = reply.receipt
    assert receipt.called and receipt.reason == "device only" and receipt.served_by == "device"
    assert not receipt.degraded and receipt.cost == 0.0 and receipt.cloud_seconds is None
    # The same cloud is reached without these terms, so that the test can fail.
    reply, _ = led(fakes, engine, Untouchable(), Terms(), threshold)
    assert reply.receipt.reason == "unavailable"


def test_work_is_told_before_the_decision_and_the_clouds_text_after_it(fakes):
    terms = Terms(stream_device_work=True)
    reply, told = led(fakes, fakes.FakeEngine(fakes.CALL), fakes.FakeCloud(), terms)
    at = next(i for i, event in enumerate(told) if isinstance(event, Decision))
    assert "".join(told[:at]).split() == fakes.CALL.split()
    assert told[at + 1 :] == ["\n\nSo: <answer> 46 </answer>"]
    assert fakes.CALL in reply.work and "So:" in reply.work
