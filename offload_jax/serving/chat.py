"""OpenAI's chat protocol, as far as it is spoken here: requests in, answers and errors out."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from offload_jax.cloud.protocol import BUDGET
from offload_jax.serving.pair import CloudFailedError, Decision, Receipt, Reply, Terms
from offload_jax.settings import parse, require


class ApiError(Exception):
    """What is wrong, as OpenAI says it: status, message, type, parameter and code."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        receipt: Receipt | None = None,
    ):
        super().__init__(message)
        self.status, self.headers, self.receipt = status, dict(headers or {}), receipt
        kinds = {429: "rate_limit_error"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        self._error = {"message": message, "type": kind, "param": param, "code": code}

    def body(self) -> dict[str, Any]:
        """The envelope, with the receipt of what was done before it went wrong."""
        offload = {} if self.receipt is None else {"offload": dataclasses.asdict(self.receipt)}
        return {"error": self._error, **offload}


INTERNAL = ApiError(500, "Something went wrong in the server.", code="internal_error")


def cloud_failed(error: CloudFailedError) -> ApiError:
    """503 where it may pass or the budget decides, 502 where the cloud is to blame."""
    reason = error.receipt.reason
    status = 503 if reason in (BUDGET, "circuit open", "rate limit", "timeout") else 502
    code = reason.replace(" ", "_")
    return ApiError(status, f"The cloud did not answer: {reason}.", None, code, None, error.receipt)


@dataclasses.dataclass(frozen=True)
class StreamOptions:
    """What a stream says besides the answer."""

    include_usage: bool = False


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """The fields that a request may have; the last three are ours."""

    model: str
    messages: list
    stream: bool = False
    stream_options: StreamOptions = dataclasses.field(default_factory=StreamOptions)
    temperature: float = 0.0  # greedy, as policies are evaluated
    seed: int = 0
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int = 1
    user: str | None = None
    metadata: dict | None = None
    device_only: bool = False
    on_cloud_failure: Literal["device", "error"] = "device"
    stream_device_work: bool = False

    @property
    def limit(self) -> int | None:
        """Most tokens of the device LLM's response."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    @property
    def terms(self) -> Terms:
        """What the client wants of the answer."""
        return Terms(self.device_only, self.on_cloud_failure, self.stream_device_work)


def read_request(body: bytes) -> ChatRequest:
    """The request in a body that nobody has looked at. Raises ApiError."""
    try:
        values = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not valid UTF-8.", code="invalid_utf8") from None
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    # What is null is left out, as OpenAI reads it.
    values = {name: value for name, value in values.items() if value is not None}
    try:
        request = parse(ChatRequest, values, "request")
        _check(request)
    except ValueError as error:
        message = str(error).removeprefix("request.")
        raise ApiError(400, _printable(message), _first_name(message)) from None
    return request


def _check(request: ChatRequest) -> None:
    require(request.n == 1, f"n is {request.n}; it must be 1: one answer is given.")
    require(
        0 <= request.temperature <= 2, f"temperature is {request.temperature}; it must be in 0..2."
    )
    require(0 <= request.seed < 2**31, f"seed is {request.seed}; it must be in 0..2147483647.")
    for name in ("max_tokens", "max_completion_tokens"):
        value = getattr(request, name)
        require(value is None or value >= 1, f"{name} is {value}; it must be at least 1.")
    require(
        request.max_tokens is None or request.max_completion_tokens in (None, request.max_tokens),
        "max_tokens and max_completion_tokens differ; give one of them.",
    )


def read_question(messages: Sequence[Any]) -> str:
    """The question in the messages: the text of a single one, of a user.

    The device LLM was trained on single questions in a template of its own, so that a system
    message or an earlier turn could only be dropped silently. Raises ApiError.
    """
    if not all(isinstance(message, dict) for message in messages):
        raise ApiError(400, "messages must be a list of objects with role and content.", "messages")
    if len(messages) != 1 or messages[0].get("role") != "user":
        roles = ", ".join(str(message.get("role"))[:20] for message in messages[:8]) or "nothing"
        raise ApiError(
            400,
            "messages must be a single one of the role 'user': the device LLM was trained on single"
            f" questions, without system messages or earlier turns; it holds {_printable(roles)}.",
            "messages",
            "unsupported_messages",
        )
    text = _text(messages[0].get("content"))
    if not text.strip():
        raise ApiError(400, "The question is empty.", "messages.0.content")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ApiError(
            400, "The question is no text: it has half a surrogate pair.", "messages.0.content"
        ) from None
    return text


def _text(content: Any) -> str:
    """A string, or the parts of one."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") for part in parts if _is_text(part)]
    if len(texts) != len(parts):
        raise ApiError(
            400,
            "content must be a text, or a list of parts of the type 'text'.",
            "messages.0.content",
        )
    return "".join(texts)


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")


def _printable(text: str) -> str:
    """Nothing that a terminal obeys, at a bearable length; half a surrogate pair cannot be sent."""
    return "".join(c if c.isprintable() else "?" for c in text[:500])


def _first_name(message: str) -> str | None:
    found = re.match(r"[a-z_.]+(?= )", message)
    return found and found.group()


# --- out ---


def completion(id: str, model: str, created: int, reply: Reply, work: bool) -> dict[str, Any]:
    """A whole answer; `work`: with all that was written on the way to it."""
    message = {"role": "assistant", "content": reply.text}
    if work:
        message["reasoning_content"] = reply.work
    choice = {"index": 0, "message": message, "finish_reason": _ending(reply), "logprobs": None}
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": usage(reply.receipt),
        "offload": dataclasses.asdict(reply.receipt),
    }


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The parts of a streamed answer."""

    id: str
    model: str
    created: int

    def opening(self) -> dict[str, Any]:
        """Who speaks."""
        return self._delta({"role": "assistant", "content": ""})

    def event(self, event: str | Decision) -> dict[str, Any]:
        """Some work, which a stock client does not show, or the decision."""
        if isinstance(event, Decision):
            return self._delta({}) | {"offload_decision": dataclasses.asdict(event)}
        return self._delta({"reasoning_content": event})

    def answer(self, reply: Reply) -> dict[str, Any]:
        """The answer in one piece: it is known when the attempt has ended."""
        return self._delta({"content": reply.text})

    def ending(self, reply: Reply) -> dict[str, Any]:
        """How it ended, with the receipt."""
        last = self._delta({}, _ending(reply))
        return last | {"offload": dataclasses.asdict(reply.receipt)}

    def usage(self, reply: Reply) -> dict[str, Any]:
        """What a client gets that asks for it."""
        return self._of([]) | {"usage": usage(reply.receipt)}

    def _delta(self, delta: Mapping[str, Any], ending: str | None = None) -> dict[str, Any]:
        return self._of([{"index": 0, "delta": dict(delta), "finish_reason": ending}])

    def _of(self, choices: list) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def sse(data: Mapping[str, Any] | str) -> str:
    """A server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"


def usage(receipt: Receipt) -> dict[str, int]:
    """Tokens of both sides together, as the protocol has one number of each kind."""
    asked = receipt.device_prompt_tokens + (receipt.cloud_prompt_tokens or 0)
    said = receipt.device_completion_tokens + (receipt.cloud_completion_tokens or 0)
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def receipt_headers(receipt: Receipt) -> dict[str, str]:
    """`X-Offload-Served-By` and so on; what is not known is left out."""
    values = dataclasses.asdict(receipt).items()
    return {
        f"X-Offload-{name.replace('_', '-').title()}": _header(value)
        for name, value in values
        if value is not None
    }


def _header(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _ending(reply: Reply) -> str:
    return "stop" if reply.ended else "length"
