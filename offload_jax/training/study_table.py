"""The rows of a study's table, from the records and scores of its workdir alone.

| row | policy | who is offloaded |
|---|---|---|
| Cloud LLM | - | everyone |
| Start | before post-training | who calls |
| Task-Tuning Only | `routed` | no one |
| & Naive Offloading | `routed` | a random share, the cap |
| & Router, & log-probability, & self-consistency, & P(call) | `routed` | score above a threshold |
| & oracle | `routed` | those that the cloud alone solves, never one that the device alone does |
| every other method | its own | who calls |
| + dial | its own | P(call) above a threshold |

Without `routed` its rows are missing. A threshold offloads the cap's share of validation prompts.
On test prompts what asks for the cloud beyond the cap goes back to the device. In the rows of
`routed`, which is not meant to call, and of a dial the device then answers, by its fallback where
its response was a call; a policy's own call beyond the cap is wrong, or answered in the same way
(`over_cap`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from offload_jax.evaluation.budgets import calibrate, oracle_scores, thresholded, top_scores
from offload_jax.evaluation.comparison import Entry
from offload_jax.evaluation.metrics import (
    Outcome,
    OverCap,
    capped,
    cloud_only,
    offload_limit,
    outcome_of,
    randomly_offloaded,
)
from offload_jax.evaluation.records import (
    Columns,
    check_same_cloud,
    columns,
    read_records,
    without_calls,
)
from offload_jax.settings import require
from offload_jax.training.study import BASE, Study, read_scores, scores_path
from offload_jax.training.workdir import Workdir

CLOUD, START, ALONE = "Cloud LLM", "Start", "Task-Tuning Only"
_SPLITS = ("test", "validation")
LABELS = {
    "task_tuned": ALONE,
    "prompt_router": "& Router: prompt, DeBERTa",
    "response_router": "& Router: prompt and response, DeBERTa",
    "device_router": "& Router: prompt, device-initialised",
    "sft": "Supervised fine-tuning on own best responses",
    "collaboration_aware_grpo": "Collaboration-Aware (GRPO)",
    "collaboration_aware": "Collaboration-Aware (Dr.GRPO)",
    "gapg_without_filter": "GAPG without filter",
    "gapg": "GAPG",
    "collaboration_aware_grpo_at_03": "Collaboration-Aware (GRPO), α_c 0.3",
    "collaboration_aware_at_03": "Collaboration-Aware (Dr.GRPO), α_c 0.3",
    "gapg_without_filter_at_03": "GAPG without filter, α_c 0.3",
    "gapg_at_03": "GAPG, α_c 0.3",
}  # in the order of the table


def label(name: str) -> str:
    """How a method or router is called in tables."""
    return LABELS.get(name, name)


def ordered(names: Iterable[str]) -> list[str]:
    """Names of methods or routers in the order of the table; a config keeps none."""
    places = {name: i for i, name in enumerate(LABELS)}
    return sorted(names, key=lambda name: (places.get(name, len(places)), name))


@dataclasses.dataclass(frozen=True)
class Seed:
    """What one seed left."""

    workdir: Workdir
    seed: int

    def results(self, policy: str, split: str = "test") -> Columns:
        """The records of a policy.

        Raises:
            ValueError: the file is damaged, or holds another policy's or seed's records.
        """
        path = self.workdir.records(policy if split == "test" else f"{policy}.{split}")
        records = read_records(path)
        try:
            found = columns(records)
        except ValueError as error:
            raise ValueError(f"{path}: {error}.") from None
        whose, seed = found.policy, records[0].seed
        same = (whose, seed) == (policy, self.seed)
        require(same, f"{path} holds the records of {whose}, seed {seed}.")
        return found


def seeds_of(study: Study, path: str | Path) -> list[Seed]:
    """The study's seeds."""
    return [Seed(Workdir(Path(path).resolve() / f"seed{seed}"), seed) for seed in study.seeds]


def entries(study: Study, path: str | Path, over_cap: OverCap = "wrong") -> dict[str, list[Entry]]:
    """The table's rows in order, each with one entry per seed."""
    rows: dict[str, list[Entry]] = {}
    for seed in seeds_of(study, path):
        for name, entry in _of_seed(study, seed, over_cap).items():
            rows.setdefault(name, []).append(entry)
    rows[CLOUD] = rows[CLOUD][:1]  # the cloud knows no seeds
    return rows


def _of_seed(study: Study, seed: Seed, over_cap: OverCap) -> dict[str, Entry]:
    cap, start = study.base.evaluation.cap, _both(seed, BASE)
    common = np.intersect1d(*(results.prompt_ids for results in start))
    require(
        not common.size,
        f"{seed.workdir.path}: {common.size} prompts are test and validation prompts.",
    )
    everyone = cloud_only(start[0])
    rows = {
        CLOUD: _asked(start[0], everyone, everyone.offloaded, None, False),
        START: _own(start[0], cap, seed.seed, over_cap),
    }
    if study.routed is not None:
        rows |= _routed_rows(study, seed, start)
    for name in ordered(study.methods):
        if name == study.routed:
            continue
        results = _both(seed, name, start)
        rows[label(name)] = _own(results[0], cap, seed.seed, over_cap)
        own, held_out = map(without_calls, results)
        dial = routed(seed, held_out, own, held_out.p_call, own.p_call, cap)
        rows[f"{label(name)} + dial"] = dial
    return rows


def _both(
    seed: Seed, policy: str, start: tuple[Columns, Columns] | None = None
) -> tuple[Columns, Columns]:
    """A policy's test and validation records, of the prompts and the cloud of the start's."""
    both = tuple(seed.results(policy, split) for split in _SPLITS)
    for split, own, first in zip(_SPLITS, both, start or both, strict=True):
        try:
            check_same_cloud(first, own)
        except ValueError as error:
            raise ValueError(f"{seed.workdir.path}, {split} prompts: {error}.") from None
    return both


def _routed_rows(study: Study, seed: Seed, start: tuple[Columns, Columns]) -> dict[str, Entry]:
    """One policy, which is not meant to call, and everything that can be put on it."""
    cap = study.base.evaluation.cap
    test, validation = map(without_calls, _both(seed, study.routed, start))
    nobody = outcome_of(test, np.zeros(len(test.prompt_ids), bool), "no offloading")
    random = randomly_offloaded(test, cap, seed.seed)
    rows = {
        label(study.routed): Entry(test, nobody, None, True),
        "& Naive Offloading": _asked(test, random, random.offloaded, None, False),
    }
    for name in ordered(study.routers):
        settings = study.routers[name]
        scores = [
            read_scores(scores_path(seed.workdir, name, split), results.prompt_ids)
            for split, results in (("validation", validation), ("test", test))
        ]
        attempt_first = settings.reads == "prompt_and_response"
        rows[label(name)] = routed(seed, validation, test, *scores, cap, attempt_first)
    for name, score in _free_scores(study).items():
        rows[name] = routed(seed, validation, test, score(validation), score(test), cap)
    perfect = oracle_scores(test)
    chosen = top_scores(perfect, test.prompt_ids, offload_limit(len(perfect), cap), seed.seed)
    chosen &= perfect >= 0
    rows["& oracle"] = _asked(test, outcome_of(test, chosen, "the oracle"), chosen, perfect, True)
    return rows


def _own(results: Columns, cap: float, seed: int, over_cap: OverCap) -> Entry:
    """A policy's own calls."""
    outcome = capped(results, cap, seed, over_cap)
    retained = without_calls(results) if over_cap == "device" else results
    return _asked(retained, outcome, results.called, None, True)


def routed(
    seed: Seed,
    validation: Columns,
    test: Columns,
    validation_scores: Float[np.ndarray, " m"],
    scores: Float[np.ndarray, " n"],
    cap: float,
    attempt_first: bool = True,
) -> Entry:
    """Test prompts with a score above the threshold that validation gives."""
    threshold = calibrate(validation_scores, validation.prompt_ids, cap, seed.seed)
    outcome = thresholded(test, scores, threshold, cap, seed.seed)
    return _asked(test, outcome, scores > threshold, scores, attempt_first)


def dialled(results: Columns, cap: float, seed: int) -> Outcome:
    """The prompts with the highest P(call) fill the budget; the device answers all others."""
    retained = without_calls(results)
    limit = offload_limit(results.prompt_ids.size, cap)
    chosen = top_scores(results.p_call, results.prompt_ids, limit, seed)
    return outcome_of(retained, chosen, "the dial")


def _asked(results, outcome, asked, scores, attempt_first) -> Entry:
    """An entry whose calls are not the responses'."""
    return Entry(results, outcome, scores, attempt_first, asked)


def _free_scores(study: Study) -> Mapping[str, Callable[[Columns], Float[np.ndarray, " n"]]]:
    """What the device's attempt itself says of it; high = offload."""
    scores = {
        "& log-probability": lambda results: -results.logprob,
        "& P(call)": lambda results: results.p_call,
    }
    if study.samples:
        # k samples agree in few degrees: the log-probability, at most some nats, parts the ties.
        scores["& self-consistency"] = lambda results: -results.agreement - results.logprob / 1e3
    return scores
