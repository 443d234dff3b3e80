"""One request to an endpoint, and what became of it: all that comes back is bounded.

The server is not trusted: it may send without end, compress the enormous, or never finish. Nothing
is decompressed, no redirect is followed (a question goes nowhere but to the configured address),
and headers are bounded by the HTTP client's parser (h11: 100 KiB).
"""

import asyncio
import email.utils
import json
import re
import time
from contextlib import AbstractAsyncContextManager
from datetime import UTC
from typing import Any

from offload_jax.cloud.ledger import Usage
from offload_jax.cloud.protocol import DENIED, REDIRECTED

_MOST_BYTES = 8 * 2**20  # of a good response's body
_ERROR_BYTES = 2**16  # read of an error's body
_ERROR_SECONDS = 1.0  # to wait for an error's body: its status is known by then


class AttemptError(Exception):
    """An attempt that failed.

    Attributes:
        name: which failure, one of `protocol.FAILURES`.
        detail: more of it, for the account: one printable line, without the key.
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


class Endpoint:
    """A server that speaks OpenAI's protocol. Made and used within one event loop."""

    def __init__(self, base_url: str, key: str, timeout: float):
        """`timeout`: seconds of silence. Raises ValueError where a package is missing."""
        openai = _packages()
        self._secret = key
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=base_url,
            timeout=timeout,
            max_retries=0,  # retries are the caller's: the client's own would not be booked
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"response": [self._check_status]}, follow_redirects=False
            ),
        )

    async def chat(self, request: dict[str, Any], seconds: float) -> bytes:
        """The body of the response to a chat request. Raises AttemptError."""
        completions = self._client.chat.completions
        return await self._body(completions.with_streaming_response.create(**request), seconds)

    async def models(self, seconds: float) -> bytes:
        """The body of the list of models. Raises AttemptError."""
        return await self._body(self._client.models.with_streaming_response.list(), seconds)

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()

    async def _body(self, sending: AbstractAsyncContextManager, seconds: float) -> bytes:
        import openai

        try:
            async with asyncio.timeout(seconds), sending as response:
                return await _whole(response.http_response)
        except AttemptError:
            raise
        except (TimeoutError, openai.APITimeoutError):
            raise AttemptError("timeout", repeat=True, cloud=True, paid=True) from None
        except openai.APIConnectionError as error:
            raise _of_connection(error) from None
        except Exception as error:
            # The client reads bodies with httpx or httpx2, whichever its version is built on.
            if not type(error).__module__.startswith(("httpx", "httpcore")):
                raise
            raise AttemptError("cut", repeat=True, cloud=True, paid=True) from None

    async def _check_status(self, response: Any) -> None:
        """Raises AttemptError unless the status is a good one.

        A hook, called before the client reads a body: it would read an error's to the end.
        """
        if not 200 <= response.status_code < 300:
            body = await _beginning(response)
            raise _of_status(response.status_code, response.headers, body, self._secret)


async def _whole(response: Any) -> bytes:
    """A body as it was sent; AttemptError where it is too long, or compressed."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise AttemptError("garbage", "compressed, though asked not to", paid=True)
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > _MOST_BYTES:
            raise AttemptError("garbage", f"more than {_MOST_BYTES} bytes", paid=True)
    return bytes(body)


async def _beginning(response: Any) -> bytes:
    """What comes of an error's body in short time, cut at a limit."""
    body = bytearray()
    try:
        async with asyncio.timeout(_ERROR_SECONDS):
            async for piece in response.aiter_raw():
                body += piece
                if len(body) >= _ERROR_BYTES:
                    break
    except Exception:  # late or broken off: the status says what matters
        pass
    return bytes(body[:_ERROR_BYTES])


def _of_status(status: int, headers: Any, body: bytes, secret: str) -> AttemptError:
    said = headers.get("location", "") if status < 400 else _message(body)
    # What the server says may quote the request, and so the key.
    detail = printable(f"{status} {said}".replace(secret, "***"), 200)
    after = retry_after(headers.get("retry-after"), time.time())
    if status == 429:
        return AttemptError("rate limit", detail, repeat=True, after=after)
    if status >= 500:
        return AttemptError("server error", detail, repeat=True, cloud=True, after=after)
    if status in (401, 402, 403):
        return AttemptError(DENIED, detail)
    if status < 400:
        return AttemptError(REDIRECTED, detail)
    return AttemptError("refused", detail, repeat=status in (408, 409, 425))


def _message(body: bytes) -> str:
    """The sentence in an error's body; empty where there is none."""
    try:
        said = json.loads(body)
        message = said.get("error", said)["message"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return message if isinstance(message, str) else ""


def _of_connection(error: Any) -> AttemptError:
    """Whether the request can have reached the cloud decides whether it may have to be paid."""
    cause = error.__cause__
    if isinstance(cause, AttemptError):  # older clients wrap what a hook raises
        return cause
    if type(cause).__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout"):
        return AttemptError("unreachable", repeat=True, cloud=True)
    return AttemptError("cut", repeat=True, cloud=True, paid=True)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, infinite at most.

    Args:
        value: a number of seconds or an HTTP date.
        now: seconds since the epoch.

    Returns:
        At least 0 (for a date that is over); None where there is neither: our own waiting will do.
    """
    value = (value or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)  # HTTP knows no other zone
        return max(0.0, date.timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def printable(text: str, most: int) -> str:
    """One line of at most `most` characters, without control characters or lone surrogates."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]


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
