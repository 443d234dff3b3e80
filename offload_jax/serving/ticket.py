"""A question on its way: between the event loop of a client and the engine's thread."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from offload_jax.serving.attempt import Attempt, Question
from offload_jax.serving.pieces import Pieces


class SlotTicket:
    """A `Ticket`, made in an event loop, to which the engine's thread reports.

    Attributes:
        question: what was asked.
        prompt: its tokens.
        limit: the most tokens of the response.
        revised: the attempt whose call is being replaced by an answer; None for a first attempt.
        came: when it entered the queue, by the monotonic clock.
        began: when it left the queue.
        cancelled: nobody waits for it any more.
    """

    def __init__(
        self,
        question: Question,
        prompt: list[int],
        limit: int,
        pieces: Pieces,
        leave: Callable[["SlotTicket"], None],
        revised: Attempt | None = None,
    ):
        """`leave` is told of a cancelled ticket; `pieces` cuts its text."""
        self.question, self.prompt, self.limit, self.revised = question, prompt, limit, revised
        self.came = self.began = time.monotonic()
        self.cancelled = False
        self._leave = leave
        self._text = pieces
        self._read = 0  # tokens that are in `_text`
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()  # None ends them
        self._done: asyncio.Future[Attempt] = self._loop.create_future()

    # For the client.

    async def __aiter__(self) -> AsyncIterator[str]:
        while (piece := await self._pieces.get()) is not None:
            yield piece
        self._pieces.put_nowait(None)  # for whoever reads on
        if not self.cancelled:
            await self.attempt()  # raises what ended the engine

    async def attempt(self) -> Attempt:
        """The whole attempt; `CancelledError` if it was given up."""
        return await asyncio.shield(self._done)

    def cancel(self) -> None:
        """Gives up the question; without effect if it has ended."""
        if not self._done.done():
            self.cancelled = True
            self._done.cancel()
            self._pieces.put_nowait(None)
            self._leave(self)

    # For the engine's thread.

    def push(self, tokens: list[int]) -> None:
        """More of the response: all its tokens so far."""
        piece = self._text.push(tokens[self._read :])
        self._read = len(tokens)
        if piece:
            self._tell(self._pieces.put_nowait, piece)

    def finish(self, attempt: Attempt) -> None:
        """The response has ended."""
        self._tell(self._end, self._done.set_result, attempt, self._text.rest(attempt.text))

    def fail(self, error: Exception) -> None:
        """The engine has ended."""
        self._tell(self._end, self._fail, error, "")

    def _end(self, settle: Callable[[Any], None], outcome: Any, rest: str) -> None:
        if self._done.done():  # cancelled meanwhile
            return
        settle(outcome)
        if rest:
            self._pieces.put_nowait(rest)
        self._pieces.put_nowait(None)

    def _fail(self, error: Exception) -> None:
        self._done.set_exception(error)
        self._done.exception()  # not to be complained about if nobody asks

    def _tell(self, *call: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(*call)
        except RuntimeError:  # the loop is closed, and nobody listens
            self.cancelled = True
