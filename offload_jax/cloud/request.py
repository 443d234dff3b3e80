"""What is sent to an endpoint, and with it what an answer in the cache depends on."""

from typing import Any, Protocol


class ChatSettings(Protocol):
    """What a request is made from."""

    model: str
    base_url: str
    max_tokens: int
    temperature: float


def chat_request(settings: ChatSettings, question: str) -> dict[str, Any]:
    """The request's body and, as `base_url`, where it goes. The cloud gets no system prompt."""
    # A lone surrogate cannot be sent.
    question = question.encode("utf-8", "replace").decode("utf-8")
    return {
        "base_url": settings.base_url,
        "model": settings.model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
    }
