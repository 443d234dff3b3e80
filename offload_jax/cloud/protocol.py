"""What the cloud is to everything else: it answers prompts, or says why it did not."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from offload_jax.tasks.task import Prompt


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back for one prompt.

    Attributes:
        text: the full response; None if there is none.
        failure: why not, in a word or two (see `FAILURES`); None if there is one.
        prompt_tokens: as the cloud counts them; None where it did not say.
        tokens: of its response, its reasoning included; None where it did not say.
        cost: dollars that the answer took when it was asked for, retries included; None where no
            price is known.
        seconds: of the attempt that brought it; None where that was not measured.
        cached: it was there already: nothing was asked, and nothing paid, this time.
    """

    text: str | None
    failure: str | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None
    cached: bool = False


BUDGET, DENIED, REDIRECTED = "budget spent", "denied", "redirected"
# The first two last: a training run does not go on with them.
FAILURES = {
    BUDGET: "the run's limit on calls, tokens or dollars left no room for this call",
    DENIED: "401, 402 or 403: the key, the balance or the permission is not there",
    "unreachable": "no connection",
    "timeout": "no whole answer within the attempt's or the chain's time",
    "cut": "the connection ended within the answer",
    "rate limit": "429, longer than the deadline allows to wait",
    "server error": "a status of 500 or above",
    REDIRECTED: "a status of 3xx: a question goes nowhere but to the configured address",
    "refused": "a status that no repetition mends, such as 400, 404, 422",
    "garbage": "the answer was not what the protocol says, or too large",
    "empty": "the answer was empty",
    "circuit open": "not tried: the attempts before it all failed",
    "not in cache": "a replay has no answer to this prompt",
}


class CloudError(Exception):
    """A run cannot go on without the cloud; the message is one sentence for the user."""


class Cloud(Protocol):
    """A fixed policy that is asked when a response calls."""

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt, in order; deterministic per prompt for a fixed cache.

        Never raises for what the cloud does: a failure is an answer without text.
        """

    def close(self) -> None:
        """Ends what is under way, promptly; nothing can be asked afterwards."""
