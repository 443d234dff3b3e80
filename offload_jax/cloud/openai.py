"""Any endpoint that speaks OpenAI's chat protocol: DeepSeek, vLLM, llama.cpp's server, and others.

One chain of attempts per question, under one deadline. Each attempt is paid for from the run's
budget before it begins and booked in the ledger when it ends, whatever became of it.
"""

import asyncio
import concurrent.futures
import dataclasses
import json
import os
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Literal

from offload_jax.cloud.attempt import AttemptError, Endpoint, printable
from offload_jax.cloud.breaker import Breaker
from offload_jax.cloud.ledger import NOTHING, BudgetConfig, Ledger, Usage, question_key
from offload_jax.cloud.prices import PriceConfig, Prices
from offload_jax.cloud.protocol import BUDGET, DENIED, REDIRECTED, Answer, CloudError
from offload_jax.cloud.request import chat_request
from offload_jax.settings import require
from offload_jax.tasks.task import Prompt

_MOST_TOKENS = 2**20  # that an endpoint is believed of a prompt, or of a response
_OVERHEAD = 64  # tokens that a chat template may add to a prompt
_LEASE = 120.0  # seconds beyond an attempt's limit until its reservation counts as abandoned
_POLL = 0.05  # seconds between looks at a question that another process is asking


@dataclasses.dataclass(frozen=True)
class OpenAIConfig:
    """An OpenAI-compatible cloud.

    Attributes:
        model: as the endpoint calls it.
        base_url: of the endpoint, up to and including /v1.
        key_variable: environment variable that holds the key; the key itself is nowhere else.
        max_tokens: most tokens of a response, reasoning included.
        limit_name: what the endpoint calls that limit.
        temperature: of the cloud; None: not sent, as some models want it. An answer is cached, so
            that a prompt has one anyway.
        concurrency: most questions under way at once.
        deadline: seconds for all attempts at a question together and the waits between them, from
            when its turn has come.
        attempt_timeout: seconds for one attempt.
        attempts: most attempts at a question.
        wait: seconds before the second attempt; doubled, with jitter, before each later one.
        breaker_failures: failures in a row that open the circuit.
        breaker_seconds: how long it stays open before a probe.
        ledger: SQLite file of cache and account; None: cloud.sqlite in the workdir.
        budget: the most that this run may spend.
        prices: dollars per million tokens; None: from the package genai-prices.
        check: look at the endpoint's /models before the run starts.
    """

    kind: Literal["openai"]
    model: str
    base_url: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"
    max_tokens: int = 4096
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float | None = 0.0
    concurrency: int = 32
    deadline: float = 300.0
    attempt_timeout: float = 120.0
    attempts: int = 4
    wait: float = 0.5
    breaker_failures: int = 16
    breaker_seconds: float = 30.0
    ledger: str | None = None
    budget: BudgetConfig = dataclasses.field(default_factory=BudgetConfig)
    prices: PriceConfig | None = None
    check: bool = True

    def __post_init__(self):
        require(bool(self.model), "config.cloud.model must not be empty.")
        require(
            self.base_url.startswith(("http://", "https://")),
            f"config.cloud.base_url is {self.base_url!r}; it must begin with http:// or https://.",
        )
        for name in ("max_tokens", "concurrency", "attempts", "breaker_failures"):
            value = getattr(self, name)
            require(value >= 1, f"config.cloud.{name} is {value}; it must be at least 1.")
        for name in ("deadline", "attempt_timeout", "breaker_seconds"):
            value = getattr(self, name)
            require(0 < value < 1e6, f"config.cloud.{name} is {value}; it must be seconds.")
        require(self.wait >= 0, "config.cloud.wait must not be negative.")


class OpenAICloud:
    """A cloud behind an endpoint. `answer` may be called from any thread."""

    def __init__(self, config: OpenAIConfig, ledger: Ledger):
        """Checks key and price, and the endpoint if `config.check`; starts its own event loop.

        Raises:
            ValueError: the key is missing, there is a budget in dollars but no known price, the
                endpoint cannot be reached or does not know the model.
        """
        key = os.environ.get(config.key_variable)
        require(
            bool(key),
            f"The environment variable {config.key_variable} (config.cloud.key_variable) holds no"
            " key for the cloud.",
        )
        self.config, self.ledger = config, ledger
        self.prices = Prices(config.model, config.base_url, config.prices)
        require(
            self.prices.known or ledger.budget.dollars is None,
            f"config.cloud.budget.dollars is {ledger.budget.dollars}, but the price of"
            f" {config.model!r} is not known: give config.cloud.prices.",
        )
        self._breaker = Breaker(config.breaker_failures, config.breaker_seconds)
        self._loop = _Loop()
        self._endpoint, self._slots = self._loop.run(_in_loop(config, key))
        if config.check:
            self._loop.run(self._check())

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt; concurrent inside."""
        return self._loop.run(self.ask_all([prompt.question for prompt in prompts]))

    async def ask_all(self, questions: Sequence[str]) -> list[Answer]:
        """Asks every question once, however often it occurs."""
        once = dict.fromkeys(questions)
        found = await asyncio.gather(*(self.ask(question) for question in once))
        answers = dict(zip(once, found, strict=True))
        return [answers[question] for question in questions]

    def submit(self, question: str) -> concurrent.futures.Future:
        """Asks one question in the background; the future's result is its `Answer`."""
        return self._loop.submit(self.ask(question))

    def close(self) -> None:
        """Ends the calls under way, booked at their worst, then the connections and the loop.

        Whoever waits for such a call gets concurrent.futures.CancelledError.
        """
        self._loop.close(self._endpoint.close())
        self.ledger.close()

    # --- one question ---

    async def ask(self, question: str) -> Answer:
        """The answer to one question, from the cache or by attempts within the deadline."""
        request = chat_request(self.config, question)
        key = question_key(request)
        del request["base_url"]  # it is the client's
        if (cached := self.ledger.cached(key)) is not None:
            return Answer(**cached, cached=True)
        async with self._slots:  # the deadline does not run while a question waits for its turn
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.config.deadline):
                    answer = await self._chain(key, request, began)
            except TimeoutError:
                answer = Answer(None, "timeout")
        return answer

    async def _chain(self, key: str, request: dict[str, Any], began: float) -> Answer:
        import tenacity

        def left() -> float:
            return self.config.deadline - (time.monotonic() - began)

        def wait(state: tenacity.RetryCallState) -> float:
            jitter = tenacity.wait_random_exponential(self.config.wait, max=30.0)(state)
            after = state.outcome.exception().after
            if after is None:
                return jitter
            # Added, so that many who were told the same do not come back at once; not so much that
            # it alone would take the wait beyond the deadline.
            return after + min(jitter, max(0.0, left() - after) / 2)

        def stop(state: tenacity.RetryCallState) -> bool:
            # What would begin after the deadline need not be waited for.
            return state.attempt_number >= self.config.attempts or state.upcoming_sleep >= left()

        retrying = tenacity.AsyncRetrying(
            wait=wait,
            stop=stop,
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, AttemptError) and e.repeat),
            reraise=True,
        )
        try:
            return await retrying(self._turn, key, request, began)
        except AttemptError as failed:
            return Answer(None, failed.name, cost=self.ledger.cost_of(key))

    async def _turn(self, key: str, request: dict[str, Any], began: float) -> Answer:
        """One attempt, if circuit and budget allow it and nobody else is asking the question."""
        worst = self._worst(request)
        while True:
            left = self.config.deadline - (time.monotonic() - began)
            limit = min(self.config.attempt_timeout, left)
            if not self._breaker.allows():
                raise AttemptError("circuit open")
            try:
                state = self.ledger.reserve(
                    key, self.config.model, worst, self.prices.source, limit + _LEASE
                )
            except BaseException:
                self._breaker.dropped()
                raise
            if state == "reserved":
                await self._reserved(key, request, worst, limit, began)
                return Answer(**self.ledger.cached(key))
            self._breaker.dropped()
            if state == "answered":
                return Answer(**self.ledger.cached(key), cached=True)
            if state == "spent":
                raise AttemptError(BUDGET)
            await asyncio.sleep(_POLL)

    async def _reserved(self, key, request, worst: Usage, limit: float, began: float) -> None:
        """An attempt whose worst case is reserved: it is settled on every way out."""
        outcome, detail, usage, text = "lost", None, _estimated(worst), None
        try:
            text, usage = self._read(await self._endpoint.chat(request, limit), worst)
            outcome = "ok"
            self._breaker.succeeded()
        except AttemptError as failed:
            outcome, detail = failed.name, failed.detail
            usage = _estimated(worst) if failed.paid else failed.usage or NOTHING
            (self._breaker.failed if failed.cloud else self._breaker.succeeded)()
            raise
        except asyncio.CancelledError:
            if time.monotonic() - began < self.config.deadline - 0.01:
                self._breaker.dropped()  # whoever asked is gone: "lost"
            else:
                outcome = "timeout"
                self._breaker.failed()
            raise
        except BaseException:  # a fault of ours tells nothing about the cloud
            self._breaker.dropped()
            raise
        finally:
            self.ledger.settle(key, outcome, detail, usage, text)

    def _read(self, body: bytes, worst: Usage) -> tuple[str, Usage]:
        """Text and usage of a response; nothing in it is trusted."""
        try:
            said = json.loads(body)
            choice = said["choices"][0]
            text, ended = choice["message"].get("content"), choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise AttemptError("garbage", repeat=True, cloud=True, paid=True) from None
        usage = self._usage(said.get("usage"), worst)
        if not isinstance(text, str) or not text.strip():
            # All tokens went into reasoning: it would be so again.
            raise AttemptError("empty", repeat=ended != "length", usage=usage)
        return _storable(text), usage

    def _usage(self, said: Any, worst: Usage) -> Usage:
        """What the cloud says it took; the worst case where it says nothing, or the absurd.

        More than the worst case is believed as far as a model can do it: not every endpoint counts
        hidden reasoning against max_tokens, or its own system prompt among ours.
        """
        prompt_tokens = _count(said, "prompt_tokens", worst.prompt_tokens)
        tokens = _count(said, "completion_tokens", worst.tokens)
        if prompt_tokens is None or tokens is None:
            return _estimated(worst)
        cached = _count(_inner(said, "prompt_tokens_details"), "cached_tokens")
        reasoning = _count(_inner(said, "completion_tokens_details"), "reasoning_tokens")
        if cached is not None and cached > prompt_tokens:
            cached = None
        cost = self.prices.dollars(prompt_tokens, tokens, cached or 0)
        return Usage(prompt_tokens, tokens, cost, cached, reasoning)

    def _worst(self, request: dict[str, Any]) -> Usage:
        """No tokenizer makes more tokens of a text than it has bytes."""
        text = "".join(message["content"] for message in request["messages"])
        prompt_tokens, tokens = len(text.encode()) + _OVERHEAD, self.config.max_tokens
        return Usage(prompt_tokens, tokens, self.prices.dollars(prompt_tokens, tokens))

    # --- before the run ---

    async def _check(self) -> None:
        """Raises ValueError unless the endpoint answers and lists the model."""
        the_cloud = f"The cloud at {self.config.base_url}"
        try:
            body = await self._endpoint.models(min(self.config.attempt_timeout, 20.0))
            models = [model["id"] for model in json.loads(body)["data"]]
        except AttemptError as error:
            require(
                error.name not in ("unreachable", "timeout", "cut"),
                f"{the_cloud} (config.cloud.base_url) does not answer.",
            )
            require(
                error.name != DENIED,
                f"{the_cloud} denies access with the key in {self.config.key_variable}:"
                f" {error.detail}.",
            )
            require(
                error.name != REDIRECTED,
                f"{the_cloud} redirects ({error.detail}): give config.cloud.base_url the address"
                " that answers itself.",
            )
            return  # not every endpoint lists its models
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # a list that is none: the endpoint is there, that is all we know
        known = ", ".join(printable(str(model), 80) for model in models[:8])
        require(
            not models or self.config.model in models,
            f"{the_cloud} has no model {self.config.model!r} (config.cloud.model); it has {known}.",
        )


def _storable(text: str) -> str:
    """Without lone surrogates, which neither SQLite nor a tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _estimated(worst: Usage) -> Usage:
    return dataclasses.replace(worst, estimated=True)


def _inner(values: Any, name: str) -> Any:
    return values.get(name) if isinstance(values, Mapping) else None


def _count(values: Any, name: str, possible: int = 0) -> int | None:
    """A number of tokens that was reported; None where there is none, or an absurd one."""
    value = _inner(values, name)
    most = max(possible, _MOST_TOKENS)
    return value if type(value) is int and 0 <= value <= most else None


async def _in_loop(config: OpenAIConfig, key: str) -> tuple[Endpoint, asyncio.Semaphore]:
    """What belongs to the event loop."""
    endpoint = Endpoint(config.base_url, key, config.attempt_timeout)
    return endpoint, asyncio.Semaphore(config.concurrency)


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="cloud")
        self._thread.start()
        self._lock = threading.Lock()  # nothing is submitted once it is being closed
        self._closing = False

    def submit(self, work: Coroutine) -> concurrent.futures.Future:
        """Raises CloudError once the loop is being closed: nothing would run it any more."""
        with self._lock:
            if self._closing:
                work.close()
                raise CloudError("The cloud was asked after the run had ended.")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine) -> Any:
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C must not leave attempts running
            raise

    def close(self, last: Coroutine) -> None:
        """Cancels what is under way, waits until it has tidied up, and does one last thing."""
        with self._lock:
            self._closing = True
        asyncio.run_coroutine_threadsafe(_cancelled(last), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)


async def _cancelled(last: Coroutine) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await last
