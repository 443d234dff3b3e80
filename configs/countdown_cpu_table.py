"""Every row of the paper's table on Countdown, with a device LLM of 0.6 M parameters.

`main`, the default, trains the rows of the main table with three seeds; `:sweeps` adds reward,
group size and budget sweeps, `:tuning` and `:finalists` are the grids in which every method's
settings were chosen; `:first` is the table before the finalists; `:at_03` adds every method that
calls with a lower reward for it to the main table; `:smoke` does every step in minutes.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

ON_POLICY = {"name": "gapg"}
# With one update per batch Dr.GRPO is GAPG without filter, up to a constant that AdamW removes;
# with two, our choice, old log-probabilities and the clipped surrogate come into play.
DR_GRPO = {"name": "dr_grpo", "updates": 2, "clip": 0.2}
GRPO = {"name": "grpo", "updates": 1, "clip": 0.2}
NO_FILTER = {"enabled": False}
SWEPT = (0,)  # the seed of the sweeps


def get_config(size: str = "main") -> ConfigDict:
    """The study: `main`, with `sweeps`, a grid of settings, or another form of it."""
    sizes = ("main", "sweeps", "tuning", "finalists", "first", "at_03", "smoke")
    if size not in sizes:
        raise ValueError(f"{Path(__file__).name} takes {', '.join(sizes)}, not {size!r}.")
    config = ConfigDict()
    config.base = _base("smoke" if size == "smoke" else "full")
    # Where far more prompts fail on the device than may be offloaded, whatever offloads failures
    # is as good as the oracle, and methods cannot differ. With few prompts of four they can.
    config.base.task.four = 0.1
    config.base.task.seed = 2  # prompts that no setting was chosen with
    config.base.evaluation.every = 60
    config.base.learning.steps = 120
    config.base.learning.reward.call = 0.45  # of 0.3 and 0.45, by five seeds of :at_03
    # The objectives' gradients differ in scale by orders of magnitude, so that any bound on the
    # norm would bind for some methods only. AdamW does not see the scale.
    config.base.learning.optimizer.clip = 1e6
    config.seeds = (0, 1, 2)
    config.methods = ConfigDict(
        {
            # No reward for calls and no filter: what the device can learn to solve by itself.
            "task_tuned": _learning(GRPO, NO_FILTER, call=0.0, rate=1e-4),  # its best of :tuning
            "collaboration_aware": _learning(DR_GRPO, NO_FILTER),
            "collaboration_aware_grpo": _learning(GRPO, NO_FILTER),
            "gapg_without_filter": _learning(ON_POLICY, NO_FILTER),
            "gapg": {},
        }
    )
    config.routed = "task_tuned"
    config.routers = ConfigDict(
        {
            "prompt_router": _router("prompt", "deberta", rate=1e-3),
            "device_router": _router("prompt", "device", rate=3e-4),
            "response_router": _router("prompt_and_response", "deberta", rate=1e-3, epochs=6),
        }
    )
    config.samples = 8
    config.sweeps = ConfigDict({})
    if size in ("first", "tuning"):
        config.base.task.seed, config.base.evaluation.every = 0, 20
        config.base.learning.steps, config.base.learning.reward.call = 60, 0.3
    if size in ("tuning", "finalists"):
        # Other prompts and other seeds than the table's, so that choosing cannot flatter it.
        config.base.task.seed, config.seeds = 1, (100,) if size == "tuning" else (100, 101)
        config.base.evaluation.test_prompts = 500
        config.routers, config.samples = ConfigDict(), 0
        config.sweeps = ConfigDict(_tuning(config))
        if size == "finalists":
            _keep_finalists(config)
    elif size == "at_03":
        for name in set(config.methods) - {config.routed}:
            lower = config.methods[name].copy_and_resolve_references()
            lower.update({"learning": {"reward": {"call": 0.3}}})
            config.methods[f"{name}_at_03"] = lower
    elif size in ("sweeps", "smoke"):
        config.sweeps = ConfigDict(_sweeps())
    if size == "smoke":
        _shrink(config)
    return config


def _base(size: str) -> ConfigDict:
    """configs/countdown_cpu.py, which need not be importable."""
    path = Path(__file__).with_name("countdown_cpu.py")
    spec = importlib.util.spec_from_file_location("countdown_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(size)
    config.evaluation.validation_prompts = config.task.validation
    del config.seed  # a study has `seeds`
    return config


def _learning(objective: dict, filter: dict, **changes: float) -> dict:
    learning = {"objective": objective, "filter": filter}
    if "call" in changes:
        learning["reward"] = {"call": changes["call"]}
    if "rate" in changes:
        learning["optimizer"] = {"rate": changes["rate"]}
    return {"learning": learning}


def _router(reads: str, body: str, rate: float, epochs: int = 20) -> dict:
    optimizer = {"rate": rate, "schedule": "cosine", "warmup_steps": 50, "weight_decay": 0.01}
    return {"reads": reads, "body": body, "optimizer": optimizer, "epochs": epochs}


def _sweeps() -> dict:
    both = ("gapg", "collaboration_aware")
    return {
        "call_reward": {
            "setting": "learning.reward.call",
            "at": (0.0, 0.15, 0.3, 0.45, 0.6, 1.0),
            "methods": both,
            "seeds": SWEPT,
        },
        "group": {
            "setting": "sampling.group",
            "at": (2, 4, 8, 16),
            "methods": ("gapg",),
            "seeds": SWEPT,
        },
        "rho": {  # trained for call budgets of 10, 20, 30, 40 and 50 %
            "setting": "learning.filter.rho",
            "at": (1 / 9, 1 / 4, 3 / 7, 2 / 3, 1.0),
            "methods": ("gapg",),
            "seeds": SWEPT,
        },
    }


def _tuning(config: ConfigDict) -> dict:
    """The grid of every method alike, for choosing on validation prompts (validation.md)."""
    every = tuple(config.methods)
    callers = tuple(name for name in every if name != config.routed)
    return {
        "rate": {
            "setting": "learning.optimizer.rate",
            "at": (1e-4, 2e-4, 4e-4),
            "methods": every,
            "seeds": config.seeds,
        },
        "call_reward": {
            "setting": "learning.reward.call",
            "at": (0.15, 0.3, 0.6),
            "methods": callers,
            "seeds": config.seeds,
        },
    }


def _keep_finalists(config: ConfigDict) -> None:
    """What `:tuning` left open, at the table's number of steps and with two starts."""
    del config.methods.task_tuned, config.sweeps.rate
    config.routed = None
    config.sweeps.call_reward.update({"at": (0.3, 0.45)})


def _shrink(config: ConfigDict) -> None:
    """Two seeds, two steps, two values: every part but the sweep of G, which compiles most.

    One decoding loop, too: with so few steps compilation is all that takes time.
    """
    config.seeds = (0, 1)
    config.samples = 2
    config.base.sampling.shrink = 1.0
    config.base.learning.steps = 2
    config.base.start.update({"steps": 20, "late_steps": 10})
    for router in config.routers.values():
        router.epochs = 1
    del config.sweeps.group
    for sweep in config.sweeps.values():
        sweep.at = sweep.at[1:3]
