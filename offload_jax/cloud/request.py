"""What is sent to an endpoint, and with it what an answer in the cache depends on."""

from typing import Any, Protocol


class ChatSettings(Protocol):
    """What a request is made from."""

    model: str
    base_url: str
    max_tokens: int
    limit_name: str
    temperature: float | None


def chat_request(settings: ChatSettings, question: str) -> dict[str, Any]:
    """The request's body and, as `base_url`, where it goes. The cloud gets no system prompt."""
    # A lone surrogate cannot be sent.
    question = question.encode("utf-8", "replace").decode("utf-8")
    request = {
        "base_url": settings.base_url,
        "model": settings.model,
        "messages": [{"role": "user", "content": question}],
        settings.limit_name: settings.max_tokens,
    }
    if settings.temperature is not None:
        request["temperature"] = settings.temperature
    return request
