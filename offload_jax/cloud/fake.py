"""A loopback endpoint that answers by a function and misbehaves as told: for tests and rehearsals.

It speaks plain HTTP over asyncio streams, because what it imitates is below any web framework:
connections that are refused, stall, or break in the middle.
"""

import asyncio
import dataclasses
import functools
import json
import random
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# What may go wrong with a request.
FAULTS = (
    "refuse",  # the connection is closed before a byte is sent
    "stall",  # nothing is ever sent
    "stall_body",  # headers, then nothing
    "cut",  # the body ends in the middle
    "garbage",  # 200 with a body that is not JSON
    "wrong_json",  # 200 with JSON of another shape
    "429",  # too many requests
    "429_after",  # with Retry-After
    "500",
    "500_huge",  # with a body without end
    "500_stall",  # with a body that does not come
    "401",
    "400",
    "empty",  # an answer of no text
    "surrogate",  # an answer that is no text in UTF-8
    "no_usage",  # an answer that does not say what it took
    "lying_usage",  # an answer that says it took the impossible
    "over_usage",  # an answer that says it took 5,000 tokens
    "huge",  # a body without end
    "headers",  # headers without end
    "bomb",  # a small body that inflates to 64 MiB
    "redirect",  # to another address
)


@dataclasses.dataclass
class FakeCloud:
    """Settings and memory of the endpoint.

    Attributes:
        answer: from the question to the text.
        faults: per fault its share of the requests.
        seconds: before a good answer.
        models: what /models lists, or the whole body, or the status of its refusal.
        seed: of the faults.
        reply: in place of `answer`, from a request's body to status and body of its response.
        retry_after: what 429_after says.
        script: faults (or None) of the first requests, in order, before shares apply.
        requests: questions, in the order in which they came.
        most_at_once: largest number of requests under way at once.
    """

    answer: Callable[[str], str]
    faults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    models: list[str] | bytes | int = 404
    seed: int = 0
    reply: Callable[[dict[str, Any]], Awaitable[tuple[int, dict[str, Any]]]] | None = None
    retry_after: str = "1"
    script: list[str | None] = dataclasses.field(default_factory=list)
    requests: list[str] = dataclasses.field(default_factory=list)
    most_at_once: int = 0

    def __post_init__(self):
        for name in (*self.faults, *(fault for fault in self.script if fault)):
            if name not in FAULTS:
                raise ValueError(f"{name!r} is not a fault; there are {', '.join(FAULTS)}.")
        if not 0 <= sum(self.faults.values()) <= 1:
            raise ValueError(f"the shares of faults add up to {sum(self.faults.values())}.")
        self._rng, self._now = random.Random(self.seed), 0

    async def serve(self, port: int = 0, host: str = "127.0.0.1") -> asyncio.Server:
        """Starts listening; port 0 picks a free one."""
        return await asyncio.start_server(self._connection, host, port)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                body = await reader.readexactly(length)
                key = head.partition(b"Bearer ")[2].split(b"\r\n")[0].decode()
                if not await self._respond(head.split(b" ")[1].decode(), body, key, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            return
        except asyncio.CancelledError:  # the server ends; asyncio would print a traceback
            return
        finally:
            writer.close()

    async def _respond(
        self, path: str, body: bytes, key: str, writer: asyncio.StreamWriter
    ) -> bool:
        """Whether the connection goes on."""
        if path.endswith("/models"):
            return await self._list(writer)
        request = json.loads(body)
        question = request["messages"][-1]["content"]
        self.requests.append(question)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            return await self._chat(self._fault(), request, key, writer)
        finally:
            self._now -= 1

    async def _list(self, writer: asyncio.StreamWriter) -> bool:
        if isinstance(self.models, int):
            extra = "Location: http://127.0.0.1:9/v1\r\n" if self.models < 400 else ""
            return await _send(writer, self.models, {"error": {"message": "no list"}}, extra)
        if isinstance(self.models, bytes):
            return await _send(writer, 200, self.models)
        data = [{"id": m, "object": "model", "created": 0, "owned_by": ""} for m in self.models]
        return await _send(writer, 200, {"object": "list", "data": data})

    def _fault(self) -> str | None:
        if self.script:
            return self.script.pop(0)
        lot = self._rng.random()
        for name, share in self.faults.items():
            lot -= share
            if lot < 0:
                return name
        return None

    async def _chat(self, fault, request, key, writer) -> bool:
        if fault == "refuse":
            return False
        if fault == "stall":
            await asyncio.sleep(3600)
        if fault in ("429", "429_after"):
            extra = f"Retry-After: {self.retry_after}\r\n" if fault == "429_after" else ""
            return await _send(writer, 429, {"error": {"message": "slow down"}}, extra)
        if fault in ("500", "401", "400"):
            # Some servers quote the request's headers in their errors.
            said = f"{'x' * self._rng.randint(100, 200)} fault {fault} of the key {key}"
            return await _send(writer, int(fault), {"error": {"message": said}})
        if fault == "surrogate":
            said = {"choices": [{"message": {"content": "half a letter: \ud800"}}]}
            return await _send(writer, 200, said)
        if fault == "garbage":
            return await _send(writer, 200, b"<html>" + bytes(range(256)))
        if fault == "wrong_json":
            return await _send(writer, 200, {"choices": "none", "usage": [1]})
        if fault in ("500_huge", "500_stall", "huge", "headers"):
            status = b"500" if fault.startswith("500") else b"200"
            writer.write(b"HTTP/1.1 " + status + b" X\r\nContent-Type: application/json\r\n")
            writer.write(b"" if fault == "headers" else b"\r\n")
            await writer.drain()
            if fault == "500_stall":
                await asyncio.sleep(3600)
            while True:
                writer.write(b"X-More: and more\r\n" * 4_096)
                await writer.drain()
        if fault == "bomb":
            return await _send(writer, 200, _bomb(), "Content-Encoding: gzip\r\n")
        if fault == "redirect":
            return await _send(writer, 307, b"", "Location: http://127.0.0.1:9/v1\r\n")
        await asyncio.sleep(self.seconds)
        status, said = await (self.reply or self._answered)(request)
        if status != 200:
            return await _send(writer, status, said)
        if fault == "empty":
            said["choices"][0]["message"]["content"] = ""
        if fault == "no_usage":
            said.pop("usage", None)
        if fault == "lying_usage":
            said["usage"] = {"prompt_tokens": -5, "completion_tokens": 10**15}
        if fault == "over_usage":
            said["usage"] = {"prompt_tokens": 7, "completion_tokens": 5_000}
        data = json.dumps(said).encode()
        if fault in ("stall_body", "cut"):
            half = data[: len(data) // 2]
            writer.write(_head(200, len(data), "") + (half if fault == "cut" else b""))
            await writer.drain()
            if fault == "stall_body":
                await asyncio.sleep(3600)
            return False
        return await _send(writer, 200, data)

    async def _answered(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """A good response; its tokens are words."""
        question = request["messages"][-1]["content"]
        text = self.answer(question)
        message = {"role": "assistant", "content": text}
        asked, said = len(question.split()), len(text.split())
        return 200, {
            "id": "fake",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {
                "prompt_tokens": asked,
                "completion_tokens": said,
                "total_tokens": asked + said,
            },
        }


@contextmanager
def running(fake: FakeCloud) -> Iterator[str]:
    """Serves in a thread of its own, on a free port; gives the base URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="fake cloud")
    thread.start()
    server = asyncio.run_coroutine_threadsafe(fake.serve(), loop).result()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(_ended(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)
        loop.close()


async def _ended(server: asyncio.Server) -> None:
    """Stops listening, and every connection with it."""
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@functools.cache
def _bomb() -> bytes:
    """64 MiB of spaces, compressed to 64 KiB."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(b" " * 2**20) for _ in range(64)) + packer.flush()


def _head(status: int, length: int, extra: str) -> bytes:
    return (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
        f"{extra}\r\n"
    ).encode()


async def _send(writer: asyncio.StreamWriter, status: int, body, extra: str = "") -> bool:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    writer.write(_head(status, len(data), extra) + data)
    await writer.drain()
    return True
