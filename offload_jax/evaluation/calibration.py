"""The dial's setting for a wanted share of calls, and what to expect of it. Pure numpy."""

import dataclasses
from collections.abc import Sequence

from offload_jax.evaluation.budgets import calibrate, thresholded
from offload_jax.evaluation.metrics import Estimate, overall_accuracy, wilson
from offload_jax.evaluation.records import Record, columns, without_calls


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A threshold on P(call), and what the records say of it.

    The threshold is a quantile of the scores, chosen without a look at what is right, so that the
    accuracies are not flattered by having been chosen.

    Attributes:
        threshold: P(call) above it is a call.
        prompts: number of records.
        call_ratio: share of prompts above it; below the wanted one where scores tie.
        accuracy: with the cloud; what it fails is answered by the device, as in the records.
        cloud_down: where every call fails, so that the device answers all.
    """

    threshold: float
    prompts: int
    call_ratio: Estimate
    accuracy: Estimate
    cloud_down: Estimate


def calibration(records: Sequence[Record], ratio: float, seed: int = 0) -> Calibration:
    """Sets the dial by one policy's records.

    Args:
        records: with P(call), the cloud's answers where it would be asked, and fallbacks.
        ratio: share of prompts that may call.
        seed: breaks ties between equal scores.

    Raises:
        ValueError: the records lack something.
    """
    results = without_calls(columns(records))  # below the threshold a call is taken back
    # P(call) is at least 0: below it, every prompt calls.
    threshold = max(calibrate(results.p_call, results.prompt_ids, ratio, seed), -1.0)
    calls = results.p_call > threshold
    outcome = thresholded(results, results.p_call, threshold, 1.0, seed)
    n = len(calls)
    return Calibration(
        threshold=threshold,
        prompts=n,
        call_ratio=wilson(int(calls.sum()), n),
        accuracy=overall_accuracy(outcome),
        cloud_down=wilson(int(results.device_correct.sum()), n),
    )
