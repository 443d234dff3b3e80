"""The service over HTTP: OpenAI's chat endpoint, with models, health, metrics and account."""

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from offload_jax.serving.account import Account
from offload_jax.serving.attempt import Engine, Question, QueueFullError, Ticket
from offload_jax.serving.chat import (
    INTERNAL,
    ApiError,
    ChatRequest,
    Chunks,
    cloud_failed,
    completion,
    read_question,
    read_request,
    receipt_headers,
    sse,
)
from offload_jax.serving.pair import CloudFailedError, Decision, Pair, Reply, Terms
from offload_jax.tasks.task import Prompt

_PAGE = Path(__file__).with_name("page.html")
_PAGE_HEADERS = {  # nothing of it comes from, or goes, elsewhere
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:;"
    " script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}
_KEEP_ALIVE = ": the attempt is under way\n\n"
_GONE = 499  # counted only: nobody is there to read it


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one client, or all together, may take.

    Attributes:
        body_bytes: of a request.
        body_seconds: in which a request's body must be there.
        under_way: answers at once, from the engine's queue to the cloud's answer.
        retry_after: seconds that a client is told to wait beyond that.
        keep_alive: seconds of silence in a stream.
    """

    body_bytes: int = 2**18
    body_seconds: float = 30.0
    under_way: int = 256
    retry_after: int = 5
    keep_alive: float = 5.0


@dataclasses.dataclass
class Service:
    """What the endpoints work with.

    Attributes:
        model: the name under which the pair is served.
        engine: runs the device LLM; `healthy` says whether it does.
        pair: leads an attempt to a reply.
        read: from a question's text to its prompt; ValueError says what is not understood.
        spent: what the cloud's ledger says; it may block.
        limits: of all clients.
        account: what was done.
        visits: what is under way.
    """

    model: str
    engine: Engine
    pair: Pair
    read: Callable[[str], Prompt]
    spent: Callable[[], Mapping[str, Any] | None] = lambda: None
    limits: Limits = dataclasses.field(default_factory=Limits)
    account: Account = dataclasses.field(default_factory=Account)
    visits: set = dataclasses.field(default_factory=set)

    @property
    def healthy(self) -> bool:
        """Whether questions can be answered."""
        return getattr(self.engine, "healthy", True)

    def admit(self, request: ChatRequest) -> "Visit":
        """Puts a request's question into the engine's queue. Raises ApiError."""
        if request.model != self.model:
            raise ApiError(
                404, f"There is no such model; there is {self.model!r}.", "model", "model_not_found"
            )
        if len(self.visits) >= self.limits.under_way:
            raise _busy(self.limits.retry_after)
        if not self.healthy:
            raise ApiError(503, "The device LLM is not running.", code="engine_down")
        try:
            prompt = self.read(read_question(request.messages))
            question = Question(prompt, request.temperature, request.seed, request.limit)
            ticket = self.engine.submit(question)
        except QueueFullError as error:
            raise _busy(error.retry_after) from None
        except ValueError as error:  # not understood, or longer than the engine takes
            message = str(error)[:500]
            raise ApiError(400, message, "messages.0.content", "question_refused") from None
        return Visit(self, ticket, request.terms)


class Visit:
    """One question under way for one client, who may leave at any time."""

    def __init__(self, service: Service, ticket: Ticket, terms: Terms):
        self._service, self._ticket = service, ticket
        self._events: asyncio.Queue[str | Decision | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(terms))
        service.visits.add(self)

    async def _run(self, terms: Terms) -> Reply:
        try:
            reply = await self._service.pair.answer(self._ticket, terms, self._events.put_nowait)
            self._service.account.add(reply.receipt)
            return reply
        except CloudFailedError as error:
            self._service.account.add(error.receipt, answered=False)
            raise
        finally:
            self._events.put_nowait(None)

    async def events(self, silence: float) -> AsyncIterator[str | Decision | None]:
        """What happens before the reply; None after so many seconds of silence."""
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), silence)
            except TimeoutError:
                yield None
                continue
            if event is None:
                return
            yield event

    async def reply(self) -> Reply:
        """The reply. Raises CloudFailedError, or whatever went wrong."""
        return await asyncio.shield(self._task)

    def leave(self) -> None:
        """Gives up what is not done yet."""
        if not self._task.done():
            self._service.account.left += 1
            self._task.cancel()
            self._ticket.cancel()
        elif not self._task.cancelled():
            self._task.exception()  # nobody may have waited for it
        self._service.visits.discard(self)


def _busy(seconds: int) -> ApiError:
    return ApiError(
        429,
        f"Too many questions are waiting; try again in {seconds} s.",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def make_app(service: Service) -> Starlette:
    """The application; it lets go of nothing when it ends, the service belongs to the caller."""

    async def chat(request: Request) -> Response:
        status = 500
        try:
            response = await _answered(service, request)
            status = response.status_code
            return response
        finally:
            service.account.requests[status] += 1

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service, began)]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != service.model:
            return _error(ApiError(404, "There is no such model.", "model", "model_not_found"))
        return JSONResponse(_model(service, began))

    async def health(_: Request) -> Response:
        said = {"status": "ok" if service.healthy else "down", "model": service.model}
        return JSONResponse(said, 200 if service.healthy else 503)

    async def metrics(_: Request) -> Response:
        text = service.account.prometheus(len(service.visits), service.healthy)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def account(_: Request) -> Response:
        spent = await asyncio.to_thread(service.spent)
        said = service.account.to_json()
        return JSONResponse(
            said | {"under_way": len(service.visits), "ledger": spent},
            headers={"Cache-Control": "no-store"},
        )

    async def page(_: Request) -> Response:
        if not _PAGE.is_file():
            raise HTTPException(404)
        return FileResponse(_PAGE, headers=_PAGE_HEADERS)

    began = int(time.time())
    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/account", account),
            Route("/", page),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _internal_error},
    )


async def _answered(service: Service, request: Request) -> Response:
    """The response to a chat request, whatever it is."""
    try:
        asked = read_request(await _body(request, service.limits))
        visit = service.admit(asked)
    except ApiError as error:
        return _error(error)
    except ClientDisconnect:
        return Response(status_code=_GONE)
    chunks = Chunks(f"chatcmpl-{uuid.uuid4().hex}", service.model, int(time.time()))
    if asked.stream:
        return _Stream(visit, _stream(service, visit, asked, chunks))
    try:
        reply = await _unless_gone(request, visit)
    except ApiError as error:
        return _error(error)
    finally:
        visit.leave()
    if reply is None:
        return Response(status_code=_GONE)
    said = completion(chunks.id, chunks.model, chunks.created, reply, asked.stream_device_work)
    return JSONResponse(said, headers=receipt_headers(reply.receipt))


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, read no further than its limit. Raises ApiError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Any web page may send a local server a request of another type, and so spend the budget.
    if kind != "application/json":
        raise ApiError(415, "The Content-Type must be application/json.", code="content_type")
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > limits.body_bytes:
                    raise ApiError(
                        413,
                        f"The body has more than {limits.body_bytes} bytes.",
                        code="body_too_large",
                        headers={"Connection": "close"},
                    )
    except TimeoutError:
        headers = {"Connection": "close"}
        raise ApiError(408, "The body did not come.", code="timeout", headers=headers) from None
    return bytes(body)


async def _unless_gone(request: Request, visit: Visit) -> Reply | None:
    """The reply, or None as soon as the client has left. Raises ApiError."""
    reply = asyncio.ensure_future(_reply(visit))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((reply, gone), return_when=asyncio.FIRST_COMPLETED)
        return reply.result() if reply.done() else None
    finally:
        reply.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _reply(visit: Visit) -> Reply:
    try:
        return await visit.reply()
    except CloudFailedError as error:
        raise cloud_failed(error) from None


class _Stream(StreamingResponse):
    """A stream that gives up its question when it ends, however it ends."""

    def __init__(self, visit: Visit, pieces: AsyncIterator[str]):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(pieces, headers=headers, media_type="text/event-stream")
        self._visit = visit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._visit.leave()


async def _stream(
    service: Service, visit: Visit, asked: ChatRequest, chunks: Chunks
) -> AsyncIterator[str]:
    """Server-sent events: comments, work and decision while it lasts, then answer and receipt."""
    yield _KEEP_ALIVE  # the headers go out now
    opened = False
    async for event in visit.events(service.limits.keep_alive):
        if event is None:
            yield _KEEP_ALIVE
            continue
        if not opened:
            yield sse(chunks.opening())
            opened = True
        yield sse(chunks.event(event))
    try:
        reply = await _reply(visit)
    except ApiError as error:
        yield sse(error.body())
        return
    except Exception:
        yield sse(INTERNAL.body())
        raise
    yield sse(chunks.answer(reply))
    yield sse(chunks.ending(reply))
    if asked.stream_options.include_usage:
        yield sse(chunks.usage(reply))
    yield sse("[DONE]")


def _model(service: Service, created: int) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": created,
        "owned_by": "offload_jax",
    }


def _error(error: ApiError) -> Response:
    headers = {} if error.receipt is None else receipt_headers(error.receipt)
    return JSONResponse(error.body(), error.status, {**headers, **error.headers})


def _http_error(_: Request, error: HTTPException) -> Response:
    """No such path, or another method."""
    said = {404: "There is nothing here.", 405: "This path takes another method."}
    message = said.get(error.status_code, "The request cannot be served.")
    return _error(ApiError(error.status_code, message, headers=error.headers))


def _internal_error(*_: Any) -> Response:
    """Starlette raises the error again, so that the server's log has it."""
    return _error(INTERNAL)
