"""One cloud for all processes of a job: process 0 asks, and tells the others.

So every prompt is asked once, and there is one ledger and one budget, however many hosts there are.
"""

import dataclasses
from collections.abc import Callable, Sequence

from offload_jax.cloud.protocol import Answer, Cloud
from offload_jax.processes import is_main, tell, together
from offload_jax.tasks.task import Prompt


class SharedCloud:
    """A cloud that only process 0 has. All processes must ask together, for the same prompts."""

    def __init__(self, make: Callable[[], Cloud]):
        """`make` is called on process 0 alone."""
        self._cloud = together(lambda: make() if is_main() else None)

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt, the same on every process."""
        answers = tell(lambda: [dataclasses.asdict(a) for a in self._cloud.answer(prompts)])
        return [Answer(**answer) for answer in answers]

    def close(self) -> None:
        """Ends the calls that are under way, where there are any."""
        if self._cloud is not None:
            self._cloud.close()
