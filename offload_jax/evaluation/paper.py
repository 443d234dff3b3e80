"""What the paper reports (arXiv 2509.24050, v3), cell by cell, in percent unless said otherwise.

Numbers of tables are exact; those of figures were read off and may be wrong by some tenths. An
experiment is called as its config, a row as the method in `config.methods` or by one of `ROWS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

CAP = 0.3  # of calls, at evaluation: rho / (1 + rho) with rho = 3/7

Column = str | int | float
OWN = "own test prompts"
ROWS = {
    "cloud": "Cloud LLM",
    "start": "Start",
    "task_tuned": "Task-Tuning Only",
    "naive": "& Naive Offloading",
    "router": "& Router",
    "collaboration_aware": "Collaboration-Aware",
    "gapg_without_filter": "GAPG without filter",
    "gapg": "GAPG",
}
_ROUTER = "Our router is a small DeBERTa trained from scratch, the paper's DeBERTa-v3-large."
EXPERIMENTS = {
    "countdown_qwen25_3b": "Countdown, Qwen2.5-3B",
    "math_llama32_1b": "MATH, Llama-3.2-1B",
    "math_qwen25_15b": "MATH, Qwen2.5-1.5B",
    "math_llama32_3b": "MATH, Llama-3.2-3B",
}


@dataclass(frozen=True)
class Part:
    """The cells of one experiment.

    Attributes:
        experiment: the config's name.
        measure: what the cells are, and how ours are computed (`training/paper_report.py`).
        cells: by row and column; None where the paper shows none.
    """

    experiment: str
    measure: Literal["overall", "conditional", "at_budget", "tokens", "group", "call_reward", "rho"]
    cells: Mapping[tuple[str, Column], float | None]


@dataclass(frozen=True)
class Exhibit:
    """A table or a figure.

    Attributes:
        title: what it shows.
        columns: what its columns are.
        figure: how it is drawn besides; None: not at all.
        parts: of its experiments.
        note: how our cells are to be read beside the paper's.
    """

    title: str
    columns: str
    figure: Literal["bars", "sweep"] | None
    parts: tuple[Part, ...]
    note: str = ""


def _cells(
    columns: Sequence[Column], **rows: Sequence[float | None]
) -> dict[tuple[str, Column], float | None]:
    """One sequence of numbers per row, one number per column."""
    return {
        (row, column): value
        for row, values in rows.items()
        for column, value in zip(columns, values, strict=True)
    }


# --- Table 1: MATH in and out of domain ---

TASKS = ("math_lighteval", "math500", "amc23", "minerva_math", "agieval_math")
AVERAGE = "average"
_CLOUD = (98.4, 97.3, 97.5, 80.9, 94.7, 93.8)
_QWEN_ALONE = (56.1, 54.8, 35.0, 20.6, 51.8, 43.7)
_LLAMA_ALONE = (51.2, 43.0, 27.5, 19.1, 45.5, 37.3)
_TABLE1 = Exhibit(
    title="Table 1: MATH, trained on MATH-lighteval, calls capped at 30 %",
    columns="test prompts",
    figure=None,
    parts=(
        Part(
            "math_qwen25_15b",
            "overall",
            _cells(
                (*TASKS, AVERAGE),
                cloud=_CLOUD,
                task_tuned=_QWEN_ALONE,
                naive=(67.2, 67.4, 50.0, 38.2, 68.3, 58.2),
                collaboration_aware=(61.5, 61.2, 42.5, 33.5, 66.9, 53.1),
                router=(70.9, 72.2, 55.0, 36.8, 69.2, 60.8),
                gapg=(80.4, 81.6, 57.5, 40.8, 73.4, 66.7),
            ),
        ),
        Part(
            "math_qwen25_15b",
            "conditional",
            _cells(
                (*TASKS, AVERAGE),
                task_tuned=_QWEN_ALONE,
                naive=(56.3, 55.4, 32.1, 21.0, 51.6, 43.3),
                collaboration_aware=(54.1, 61.2, 28.6, 13.6, 55.3, 42.6),
                router=(61.8, 64.9, 39.3, 21.8, 58.7, 49.3),
                gapg=(72.6, 75.1, 42.9, 24.1, 64.6, 55.8),
            ),
        ),
        Part(
            "math_llama32_3b",
            "overall",
            _cells(
                (*TASKS, AVERAGE),
                cloud=_CLOUD,
                task_tuned=_LLAMA_ALONE,
                naive=(65.1, 59.0, 45.0, 37.1, 58.7, 53.0),
                collaboration_aware=(66.8, 59.6, 42.5, 36.8, 58.9, 52.9),
                router=(69.4, 62.0, 46.0, 39.1, 53.8, 54.1),
                gapg=(79.5, 68.6, 52.5, 43.4, 64.5, 61.7),
            ),
        ),
        Part(
            "math_llama32_3b",
            "conditional",
            _cells(
                (*TASKS, AVERAGE),
                task_tuned=_LLAMA_ALONE,
                naive=(51.6, 41.8, 27.5, 19.4, 45.7, 37.2),
                collaboration_aware=(60.2, 43.7, 21.4, 13.4, 43.9, 36.5),
                router=(64.9, 45.7, 25.0, 20.2, 35.1, 38.2),
                gapg=(72.2, 56.6, 35.7, 27.7, 59.7, 50.4),
            ),
        ),
    ),
    note=f"The router has scores for its own test prompts alone. {_ROUTER}",
)

# --- figures ---


def _final(gapg, collaboration_aware, naive, task_tuned, router, **more):
    rows = {
        "task_tuned": task_tuned,
        "naive": naive,
        "router": router,
        "collaboration_aware": collaboration_aware,
        "gapg": gapg,
    }
    return _cells((OWN,), **{name: (value,) for name, value in {**more, **rows}.items()})


_FINAL = Exhibit(
    title="Where training ends: overall accuracy, calls capped at 30 %",
    columns="test prompts",
    figure="bars",
    parts=(
        Part(
            "countdown_qwen25_3b",
            "overall",
            _final(87.0, 79.9, 70.1, 53.7, 77.7, cloud=94.6, start=20.0),
        ),
        Part("math_llama32_1b", "overall", _final(60.5, 55.0, 51.2, 36.1, 56.2)),
        Part("math_qwen25_15b", "overall", _final(78.2, 63.5, 66.4, 55.6, 70.4)),
        Part("math_llama32_3b", "overall", _final(77.7, 69.0, 62.9, 51.2, 69.6)),
    ),
    note=f"The paper's are read off its curves of training. {_ROUTER}",
)
_FILTER = Exhibit(
    title="Prompt filtering: overall accuracy with and without it",
    columns="test prompts",
    figure="bars",
    parts=tuple(
        Part(experiment, "overall", _cells((OWN,), gapg=(on,), gapg_without_filter=(off,)))
        for experiment, on, off in (
            ("math_qwen25_15b", 78.5, 74.1),
            ("math_llama32_3b", 75.9, 63.5),
            ("countdown_qwen25_3b", 86.9, 71.7),
        )
    ),
)
_BUDGETS = Exhibit(
    title="Overall accuracy at a call budget",
    columns="budget, percent of the prompts",
    figure="sweep",
    parts=(
        Part(
            "math_qwen25_15b",
            "at_budget",
            _cells(
                (0, 20, 40, 60, 80, 100),
                naive=(56.1, 63.5, 71.4, 80.5, 89.9, 98.4),
                router=(56.1, 65.4, 74.7, 83.3, 92.5, 98.4),
                collaboration_aware=(56.1, 51.1, 71.1, 91.1, None, 98.4),
                gapg=(56.1, 72.2, 86.7, 96.3, 97.8, 98.4),
            ),
        ),
    ),
    note="Ours is one policy for every budget, by its P(call), its fallback answering where it is"
    f" not offloaded; Naive is the expected line. {_ROUTER}",
)
_ON_VALIDATION = "Ours is on validation prompts, as no test prompt chooses a setting."
GROUPS = (2, 4, 8, 16, 32)
_GROUP = Exhibit(
    title="Group size G: overall accuracy of GAPG",
    columns="G",
    figure="sweep",
    parts=(
        Part("math_qwen25_15b", "group", _cells(GROUPS, overall=(79.1, 79.9, 80.4, 80.6, 80.6))),
        Part("math_llama32_3b", "group", _cells(GROUPS, overall=(77.5, 79.1, 79.5, 79.8, 79.9))),
    ),
    note=_ON_VALIDATION,
)
_CALL_REWARD = Exhibit(
    title="Reward of a correct call, α_c: overall accuracy of GAPG",
    columns="α_c",
    figure="sweep",
    parts=(
        Part(
            "math_qwen25_15b",
            "call_reward",
            _cells(
                (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 1.0),
                overall=(53.3, 54.5, 76.4, 73.2, 78.5, 80.2, 78.8, 74.5, 29.6),
            ),
        ),
        Part(
            "math_llama32_3b",
            "call_reward",
            _cells(
                (0.0, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 1.0),
                overall=(48.8, 63.6, 69.5, 68.5, 75.6, 78.4, 76.2, 74.8, 29.8),
            ),
        ),
    ),
    note=_ON_VALIDATION,
)
_RHO = Exhibit(
    title="Call budget trained for: GAPG",
    columns="budget, percent of the prompts",
    figure="sweep",
    parts=(
        Part(
            "math_qwen25_15b",
            "rho",
            _cells(
                (20, 30, 40, 50),
                local=(55.1, 52.6, 49.7, 41.3),
                call_ratio=(21.3, 28.6, 44.2, 53.7),
                overall=(74.3, 80.4, 88.2, 90.7),
            ),
        ),
    ),
    note=f"{_ON_VALIDATION} Calls are capped at the budget.",
)
_TOKEN_COLUMNS = ("no offloading", "call", "solve", "average")
_TOKENS = Exhibit(
    title="Device tokens per test prompt",
    columns="responses",
    figure="bars",
    parts=(
        Part("math_qwen25_15b", "tokens", _cells(_TOKEN_COLUMNS, gapg=(424, 175, 325, 280))),
        Part("math_llama32_3b", "tokens", _cells(_TOKEN_COLUMNS, gapg=(359, 111, 324, 259))),
    ),
    note="Tokens, not percent. No offloading: those of Task-Tuning Only. Call, solve, average:"
    " GAPG's responses that call, the others, all.",
)

PAPER: Mapping[str, Exhibit] = {
    "table1": _TABLE1,
    "final": _FINAL,
    "filter": _FILTER,
    "budgets": _BUDGETS,
    "group": _GROUP,
    "call_reward": _CALL_REWARD,
    "rho": _RHO,
    "tokens": _TOKENS,
}
