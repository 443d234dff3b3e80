"""Two ways in which a run goes wrong, told in a sentence that says what to change. Pure."""

import math
from collections.abc import Mapping, Sequence

ALL_CALLS = 0.99
NO_CALLS = 0.01
RATE = "config.learning.optimizer.rate"
CALL_REWARD = "config.learning.reward.call"


class RunError(FloatingPointError):
    """The run cannot go on: its numbers are no numbers."""


def check_finite(step: int, metrics: Mapping[str, float | None], setting: str = RATE) -> None:
    """Raises RunError naming the step and every metric that is NaN or infinite.

    Args:
        step: the step that the metrics belong to.
        metrics: scalars by name; None (a metric without meaning at this step) is passed over.
        setting: config path of the learning rate of the stage that runs.
    """
    broken = {k: float(v) for k, v in metrics.items() if v is not None and not math.isfinite(v)}
    if broken:
        named = ", ".join(f"{name} is {value}" for name, value in broken.items())
        raise RunError(
            f"step {step}: {named}; the update has diverged: lower {setting} and give a "
            f"new --workdir"
        )


def collapse(call_ratios: Sequence[float], patience: int) -> str | None:
    """A warning if the policy has just been found collapsed, else None.

    Collapsed: over the last `patience` evaluations nearly all prompts were called (a call ratio
    of at least 0.99), or nearly none (at most 0.01). The warning comes once per collapse, at the
    evaluation that completes the streak; the history decides, so a resumed run does not repeat it.

    Args:
        call_ratios: raw call ratio of every evaluation so far, in order.
        patience: how many evaluations in a row make a collapse.
    """
    if patience < 1:
        raise ValueError(f"config.learning.collapse_patience must be at least 1, not {patience}")
    all_calls = _streak([ratio >= ALL_CALLS for ratio in call_ratios])
    no_calls = _streak([ratio <= NO_CALLS for ratio in call_ratios])
    if all_calls == patience:
        many, advice = "nearly every prompt", f"lower {CALL_REWARD} (α_c) or {RATE}"
    elif no_calls == patience:
        many, advice = "almost no prompt", f"raise {CALL_REWARD} (α_c) or lower {RATE}"
    else:
        return None
    return f"the device called the cloud for {many} in the last {patience} evaluations: {advice}"


def _streak(hits: Sequence[bool]) -> int:
    """How many of the last entries are true in a row."""
    for length, hit in enumerate(reversed(hits)):
        if not hit:
            return length
    return len(hits)
