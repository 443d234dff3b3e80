"""A circuit breaker: when every attempt fails, the next ones fail at once instead of waiting."""

import time
from collections.abc import Callable


class Breaker:
    """Closed until `failures` attempts in a row have failed; then open for `seconds`.

    After that one attempt is let through as a probe: if it succeeds the circuit is closed, if it
    fails it is open again. Not thread-safe: it belongs to one event loop.
    """

    def __init__(self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        """`clock`: seconds, for tests."""
        self._limit, self._seconds, self._clock = failures, seconds, clock
        self._failed, self._opened, self._probing = 0, None, False

    def allows(self) -> bool:
        """Whether an attempt may be made now; who is let through reports back how it went."""
        if self._opened is None:
            return True
        if self._probing or self._clock() < self._opened + self._seconds:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """The cloud is there."""
        self._failed, self._opened, self._probing = 0, None, False

    def failed(self) -> None:
        """An attempt failed in a way that speaks against the cloud as a whole."""
        self._failed += 1
        if self._probing or self._failed >= self._limit:
            self._opened = self._clock()
        self._probing = False

    def dropped(self) -> None:
        """Who was let through did not get to ask, or cannot tell how it went."""
        self._probing = False
