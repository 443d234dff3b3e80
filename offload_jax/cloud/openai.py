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

from offload_jax.cloud.breaker import Breaker
from offload_jax.cloud.ledger import NOTHING, BudgetConfig, Ledger, Usage, question_key
from offload_jax.cloud.prices import PriceConfig, Prices
from offload_jax.cloud.protocol import BUDGET, DENIED, Answer
from offload_jax.cloud.request import chat_request
from offload_jax.settings import require
from offload_jax.tasks.task import Prompt

_MOST_BYTES = 8 * 2**20  # of one response's body
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
        openai = _packages()
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
        self._secret = key
        self._breaker = Breaker(config.breaker_failures, config.breaker_seconds)
        self._loop = _Loop()
        # Retries are ours alone: the client's own would not be booked.
        self._client = self._loop.run(_made(openai, key, config))
        self._slots = self._loop.run(_slots(config.concurrency))
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
        """Ends the connections and the loop."""
        self._loop.run(self._client.close())
        self._loop.stop()
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

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception()
            jittered = tenacity.wait_random_exponential(self.config.wait, max=30.0)(state)
            return max(jittered, getattr(error, "after", None) or 0.0)

        def stop(state: tenacity.RetryCallState) -> bool:
            # What would begin after the deadline need not be waited for.
            left = self.config.deadline - (time.monotonic() - began)
            return state.attempt_number >= self.config.attempts or state.upcoming_sleep >= left

        retrying = tenacity.AsyncRetrying(
            wait=wait,
            stop=stop,
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, _AttemptError) and e.repeat),
            reraise=True,
        )
        try:
            return await retrying(self._turn, key, request, began)
        except _AttemptError as failed:
            return Answer(None, failed.name, cost=self.ledger.cost_of(key))

    async def _turn(self, key: str, request: dict[str, Any], began: float) -> Answer:
        """One attempt, if circuit and budget allow it and nobody else is asking the question."""
        worst = self._worst(request)
        while True:
            left = self.config.deadline - (time.monotonic() - began)
            limit = min(self.config.attempt_timeout, left)
            if not self._breaker.allows():
                raise _AttemptError("circuit open")
            try:
                state = self.ledger.reserve(
                    key, self.config.model, worst, self.prices.source, limit + _LEASE
                )
            except BaseException:
                self._breaker.dropped()
                raise
            if state == "reserved":
                await self._reserved(key, request, worst, limit)
                return Answer(**self.ledger.cached(key))
            self._breaker.dropped()
            if state == "answered":
                return Answer(**self.ledger.cached(key), cached=True)
            if state == "spent":
                raise _AttemptError(BUDGET)
            await asyncio.sleep(_POLL)

    async def _reserved(self, key, request, worst: Usage, limit: float) -> None:
        """An attempt whose worst case is reserved: it is settled on every way out."""
        outcome, detail, usage, text = "lost", None, _estimated(worst), None
        try:
            text, usage = await self._attempt(request, worst, limit)
            outcome = "ok"
            self._breaker.succeeded()
        except _AttemptError as failed:
            outcome, detail = failed.name, failed.detail
            usage = _estimated(worst) if failed.paid else failed.usage or NOTHING
            (self._breaker.failed if failed.cloud else self._breaker.succeeded)()
            raise
        except asyncio.CancelledError:  # the deadline, or who asked is gone
            outcome = "timeout"
            self._breaker.failed()
            raise
        except BaseException:  # a fault of ours tells nothing about the cloud
            self._breaker.dropped()
            raise
        finally:
            self.ledger.settle(key, outcome, detail and _storable(detail), usage, text)

    async def _attempt(self, request, worst: Usage, limit: float) -> tuple[str, Usage]:
        import openai

        try:
            async with asyncio.timeout(limit):
                body = await self._body(request)
        except TimeoutError:
            raise _AttemptError("timeout", repeat=True, cloud=True, paid=True) from None
        except _AttemptError:
            raise
        except openai.APIStatusError as error:
            raise _of_status(error, self._secret) from None
        except openai.APITimeoutError:
            raise _AttemptError("timeout", repeat=True, cloud=True, paid=True) from None
        except openai.APIConnectionError as error:
            raise _of_connection(error) from None
        except Exception as error:
            # The client reads bodies with httpx or httpx2, whichever its version is built on.
            if not type(error).__module__.startswith(("httpx", "httpcore")):
                raise
            raise _AttemptError("cut", repeat=True, cloud=True, paid=True) from None
        return self._read(body, worst)

    async def _body(self, request: dict[str, Any]) -> bytes:
        create = self._client.chat.completions.with_streaming_response.create
        async with create(**request) as response:
            body = bytearray()
            async for piece in response.iter_bytes():
                body += piece
                if len(body) > _MOST_BYTES:
                    raise _AttemptError("garbage", f"more than {_MOST_BYTES} bytes", paid=True)
            return bytes(body)

    def _read(self, body: bytes, worst: Usage) -> tuple[str, Usage]:
        """Text and usage of a response; nothing in it is trusted."""
        try:
            said = json.loads(body)
            choice = said["choices"][0]
            text, ended = choice["message"].get("content"), choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _AttemptError("garbage", repeat=True, cloud=True, paid=True) from None
        usage = self._usage(said.get("usage"), worst)
        if not isinstance(text, str) or not text.strip():
            # All tokens went into reasoning: it would be so again.
            raise _AttemptError("empty", repeat=ended != "length", usage=usage)
        return _storable(text), usage

    def _usage(self, said: Any, worst: Usage) -> Usage:
        """What the cloud says it took; the worst case where it says nothing, or the impossible."""
        counts = said if isinstance(said, Mapping) else {}
        prompt_tokens, tokens = _count(counts, "prompt_tokens"), _count(counts, "completion_tokens")
        if prompt_tokens is None or tokens is None:
            return _estimated(worst)
        if prompt_tokens > worst.prompt_tokens or tokens > worst.tokens:
            return _estimated(worst)
        cached = _count(counts.get("prompt_tokens_details"), "cached_tokens")
        reasoning = _count(counts.get("completion_tokens_details"), "reasoning_tokens")
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
        import openai

        url = self.config.base_url
        try:
            async with asyncio.timeout(min(self.config.attempt_timeout, 20.0)):
                models = [model.id async for model in self._client.models.list()]
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise ValueError(
                    f"The cloud at {url} refuses the key in {self.config.key_variable}"
                    f" ({error.status_code})."
                ) from None
            return  # not every endpoint lists its models
        except (openai.APIConnectionError, TimeoutError):
            raise ValueError(
                f"The cloud at {url} (config.cloud.base_url) does not answer."
            ) from None
        except Exception:  # a list that is none: the endpoint is there, that is all we know
            return
        require(
            not models or self.config.model in models,
            f"The cloud at {url} has no model {self.config.model!r} (config.cloud.model); it has"
            f" {', '.join(models[:8])}.",
        )


class _AttemptError(Exception):
    """An attempt that failed.

    Attributes:
        name: which failure, one of `protocol.FAILURES`.
        detail: more of it, for the account.
        repeat: another attempt may succeed.
        cloud: it speaks against the cloud as a whole, and counts for the breaker.
        paid: the cloud may have done the work.
        after: seconds that the cloud wants us to wait.
        usage: what it took, where that is known.
    """

    def __init__(
        self,
        name: str,
        detail: str | None = None,
        *,
        repeat: bool = False,
        cloud: bool = False,
        paid: bool = False,
        after: float | None = None,
        usage: Usage | None = None,
    ):
        super().__init__(name)
        self.name, self.detail, self.repeat, self.cloud = name, detail, repeat, cloud
        self.paid, self.after, self.usage = paid, after, usage


def _of_status(error: Any, secret: str) -> _AttemptError:
    status = error.status_code
    # What the server says may quote the request, and so the key.
    detail = f"{status} {error.message}".replace(secret, "***")[:200]
    if status == 429:
        return _AttemptError("rate limit", detail, repeat=True, after=_retry_after(error.response))
    if status >= 500:
        after = _retry_after(error.response)
        return _AttemptError("server error", detail, repeat=True, cloud=True, after=after)
    if status in (401, 402, 403):
        return _AttemptError(DENIED, detail)
    return _AttemptError("refused", detail, repeat=status in (408, 409, 425))


def _storable(text: str) -> str:
    """Without lone surrogates, which neither SQLite nor a tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _packages() -> Any:
    """The client's package; ValueError where one that is needed is missing."""
    try:
        import openai
        import tenacity  # noqa: F401

        return openai
    except ImportError as error:
        raise ValueError(
            f"config.cloud.kind = 'openai' needs the package {error.name}: pip install"
            " 'offload_jax[cloud]'."
        ) from None


def _of_connection(error: Any) -> _AttemptError:
    """Whether the request can have reached the cloud decides whether it may have to be paid."""
    if type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout"):
        return _AttemptError("unreachable", repeat=True, cloud=True)
    return _AttemptError("cut", repeat=True, cloud=True, paid=True)


def _retry_after(response: Any) -> float | None:
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None  # a date, or nonsense: our own waiting will do
    return seconds if 0 <= seconds < float("inf") else None


def _estimated(worst: Usage) -> Usage:
    return dataclasses.replace(worst, estimated=True)


def _count(values: Any, name: str) -> int | None:
    value = values.get(name) if isinstance(values, Mapping) else None
    return value if type(value) is int and 0 <= value < 2**53 else None


async def _made(openai: Any, key: str, config: OpenAIConfig) -> Any:
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=config.base_url,
        max_retries=0,
        timeout=config.attempt_timeout,
    )


async def _slots(concurrency: int) -> asyncio.Semaphore:
    return asyncio.Semaphore(concurrency)


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="cloud")
        self._thread.start()

    def submit(self, work: Coroutine) -> concurrent.futures.Future:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine) -> Any:
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C must not leave attempts running
            raise

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
