"""The pair at work on one question: the device LLM attempts it, and its decision is carried out.

`decide` is the policy. `Gate` is the only place where bytes leave the machine: nothing else in
serving holds the cloud. `Pair` leads a question from its attempt to a reply with its receipt.
"""

import asyncio
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Literal

from offload_jax.cloud.protocol import BUDGET, Answer, Cloud
from offload_jax.serving.attempt import Attempt, Engine, Ticket
from offload_jax.tasks.task import Parsed, Prompt

# Reasons besides the failures of `cloud.protocol`.
ANSWERED, CALLED, NO_ANSWER = "answered", "called", "no answer"
ABOVE, BELOW = "P(call) above the dial", "P(call) not above the dial"
DEVICE_ONLY, UNAVAILABLE = "device only", "unavailable"
UNTRIED = (BUDGET, "circuit open")  # nothing was sent, and nothing paid

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Terms:
    """What a client wants of one answer.

    Attributes:
        device_only: nothing of this question may leave the machine.
        on_cloud_failure: the device's own best answer, or an error.
        stream_device_work: the device's work is told as it comes, after it what was written in
            place of a call.
    """

    device_only: bool = False
    on_cloud_failure: Literal["device", "error"] = "device"
    stream_device_work: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the end of an attempt says.

    Attributes:
        call: the cloud is to answer.
        reason: why, or why not.
        call_probability: at the decision point.
    """

    call: bool
    reason: str
    call_probability: float | None


@dataclasses.dataclass(frozen=True)
class Receipt:
    """Who answered, why, and what it took.

    Attributes:
        served_by: who gave the answer.
        called: the decision was to call, by the device LLM or by the dial in its place.
        reason: of the decision, or why it was not carried out.
        call_probability: at the decision point.
        device_prompt_tokens: of the question in the device LLM's template.
        device_completion_tokens: that the device LLM generated, a second answer included.
        cloud_prompt_tokens: as the cloud counts them; None where it was not asked or did not say.
        cloud_completion_tokens: the same of its response.
        cost: dollars; 0 where nothing was paid, None where no price is known.
        device_seconds: that the device LLM worked, a second answer included.
        cloud_seconds: that the cloud was waited for; None where it was not asked.
        waited: seconds in the queue.
        degraded: the cloud was to answer and did not; `reason` says why.
        cached: the cloud's answer was there already.
    """

    served_by: Literal["device", "cloud"]
    called: bool
    reason: str
    call_probability: float | None
    device_prompt_tokens: int
    device_completion_tokens: int
    cloud_prompt_tokens: int | None
    cloud_completion_tokens: int | None
    cost: float | None
    device_seconds: float
    cloud_seconds: float | None
    waited: float
    degraded: bool
    cached: bool


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the client gets.

    Attributes:
        text: the answer; where none was found, the whole response.
        ended: the response was not cut off by its length.
        work: all that the device LLM wrote, and what was written in place of a call.
        receipt: who answered and why.
    """

    text: str
    ended: bool
    work: str
    receipt: Receipt


class CloudFailedError(Exception):
    """The cloud failed, and the client wants no other answer; the receipt says what it took."""

    def __init__(self, receipt: Receipt):
        super().__init__(f"the cloud was called and did not answer: {receipt.reason}")
        self.receipt = receipt


def decide(attempt: Attempt, threshold: float | None = None) -> Decision:
    """The device LLM's own decision, or the dial's: a call where P(call) > threshold."""
    probability = attempt.call_probability
    dial = threshold is not None and probability is not None
    call = probability > threshold if dial else attempt.called
    if call:
        reason = CALLED if attempt.called else ABOVE
    elif attempt.called:
        reason = BELOW
    else:
        reason = NO_ANSWER if attempt.answer is None else ANSWERED
    return Decision(call, reason, probability)


class Gate:
    """The way to the cloud. It may block; it is asked in threads, so many at once."""

    def __init__(self, cloud: Cloud, at_once: int, patience: float):
        """`patience`: seconds that an answer is waited for, whatever the cloud's own limits."""
        self._cloud, self._patience = cloud, patience
        self._pool = concurrent.futures.ThreadPoolExecutor(at_once, thread_name_prefix="gate")

    async def ask(self, prompt: Prompt, terms: Terms) -> Answer:
        """The cloud's answer, or why there is none. What the terms forbid is not sent."""
        if terms.device_only:
            return Answer(None, DEVICE_ONLY)
        asked = asyncio.get_running_loop().run_in_executor(self._pool, self._answer, prompt)
        try:
            async with asyncio.timeout(self._patience):
                return await asked
        except TimeoutError:
            return Answer(None, "timeout")

    def _answer(self, prompt: Prompt) -> Answer:
        try:
            (answer,) = self._cloud.answer([prompt])
            return answer
        except Exception:  # a replay without an answer, a question that a model of ours cannot take
            _LOG.exception("the cloud could not be asked")
            return Answer(None, UNAVAILABLE)

    def close(self) -> None:
        """Ends the calls under way."""
        self._cloud.close()
        self._pool.shutdown(cancel_futures=True)


def _nobody(_: str | Decision) -> None:
    """Is told what nobody wants to know."""


class Pair:
    """Device and cloud together."""

    def __init__(
        self,
        engine: Engine,
        gate: Gate,
        parse: Callable[[str], Parsed],
        threshold: float | None = None,
    ):
        """`parse` finds the answer in a text; `threshold` is the dial, None: the device decides."""
        self._engine, self._gate, self._parse, self.threshold = engine, gate, parse, threshold

    async def answer(
        self, ticket: Ticket, terms: Terms, tell: Callable[[str | Decision], None] = _nobody
    ) -> Reply:
        """Leads a question to its reply.

        Args:
            ticket: the device LLM's attempt, under way.
            terms: what the client wants.
            tell: is told the decision when it is known and, if the terms say so, before it the
                device's work and after it what was written in place of a call.

        Raises:
            CloudFailedError: the cloud failed, and the terms say `error`.
        """
        say = tell if terms.stream_device_work else _nobody
        if terms.stream_device_work:
            async for piece in ticket:
                say(piece)
        attempt = await ticket.attempt()
        decision = decide(attempt, self.threshold)
        tell(decision)
        if not decision.call:
            return await self._by_device(attempt, _receipt(attempt, decision), say)
        began = time.monotonic()
        answer = await self._gate.ask(attempt.question.prompt, terms)
        receipt = _receipt(attempt, decision, answer, time.monotonic() - began)
        if answer.text is None:
            if receipt.degraded and terms.on_cloud_failure == "error":
                raise CloudFailedError(receipt)
            return await self._by_device(attempt, receipt, say)
        say(f"\n\n{answer.text}")
        found = self._parse(answer.text).answer
        text = answer.text.strip() if found is None else found
        return Reply(text, True, f"{attempt.text}\n\n{answer.text}", receipt)

    async def _by_device(
        self, attempt: Attempt, receipt: Receipt, say: Callable[[str], None]
    ) -> Reply:
        """The device's own best answer: where it called, the one that it gives instead."""
        if not attempt.called:
            return Reply(_answer_in(attempt), attempt.ended, attempt.text, receipt)
        began = time.monotonic()
        second = await self._engine.fallback(attempt)
        say(f"\n\n{second.text}")
        receipt = dataclasses.replace(
            receipt,
            device_completion_tokens=len(attempt.tokens) + len(second.tokens),
            device_seconds=attempt.seconds + time.monotonic() - began,
        )
        work = f"{attempt.text}\n\n{second.text}"
        return Reply(_answer_in(second), second.ended, work, receipt)


def _answer_in(attempt: Attempt) -> str:
    """Its answer, or all of it."""
    return attempt.text.strip() if attempt.answer is None else attempt.answer


def _receipt(
    attempt: Attempt,
    decision: Decision,
    answer: Answer | None = None,
    cloud_seconds: float | None = None,
) -> Receipt:
    """The receipt of an attempt and, if one was called for, of the cloud's answer."""
    forbidden = answer is not None and answer.failure == DEVICE_ONLY
    asked = answer is not None and not forbidden
    failed = asked and answer.text is None
    untried = asked and answer.failure in UNTRIED and answer.cost is None
    free = not asked or answer.cached or untried
    return Receipt(
        served_by="cloud" if asked and not failed else "device",
        called=decision.call,
        reason=answer.failure if failed or forbidden else decision.reason,
        call_probability=decision.call_probability,
        device_prompt_tokens=attempt.prompt_tokens,
        device_completion_tokens=len(attempt.tokens),
        cloud_prompt_tokens=answer.prompt_tokens if asked else None,
        cloud_completion_tokens=answer.tokens if asked else None,
        cost=0.0 if free else answer.cost,
        device_seconds=attempt.seconds,
        cloud_seconds=cloud_seconds if asked else None,
        waited=attempt.waited,
        degraded=failed,
        cached=asked and answer.cached,
    )
