"""Where GAPG differs from its rivals: the methods that call, in several regimes, on a CPU.

A regime is a study of its own (see configs/countdown_cpu_table.py) in a folder of its own; sweeps
are regimes that share their start. `:smoke` does every step of it.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

METHODS = ("collaboration_aware", "gapg_without_filter", "gapg")
SWEEPS = {
    "call_reward": ("learning.reward.call", (0.15, 0.3, 0.6)),
    "group": ("sampling.group", (4, 16)),
    "rate": ("learning.optimizer.rate", (1e-4, 4e-4)),
}
CALL_REWARD = {"call_reward": ("learning.reward.call", (0.3, 0.45))}  # 0.45 is the table's
ARITHMETIC_SWEEPS = {
    "call_reward": ("learning.reward.call", (0.45, 0.6)),
    "rate": ("learning.optimizer.rate", (5e-5,)),
}
RECALL_CALL_REWARDS = {"recall_unnoticed": (0.3, 0.375, 0.45, 0.6, 0.75)}  # others: 0.3, 0.6
# What differs from the common Countdown experiment.
REGIMES = {
    "common": {},
    "early": {"start.late_traces.impatience": 0.8},  # the start gives up or errs after few tries
    "weak": {"start.steps": 1200},  # the start has learnt less
    "hopeless": {"task.four": 0.5},  # the device fails more often than it may call
}
# Shares of facts that the device was taught right and wrong; the rest are blanks, which it can see.
RECALL = {
    "recall_unnoticed": {"known": 0.35, "mistaken": 0.35},  # half of its failures look like skill
    "recall_noticed": {"known": 0.35, "mistaken": 0.0},  # as many failures, all of them seen
    "recall_able": {"known": 0.6, "mistaken": 0.1},  # few failures
}


def get_config(size: str = "full") -> ConfigDict:
    """All regimes in full, or their `smoke` form."""
    if size not in ("full", "smoke"):
        raise ValueError(f"configs/regimes_cpu.py takes full or smoke, not {size!r}.")
    config = ConfigDict({"regimes": {}})
    for name, changes in REGIMES.items():
        study = _study(size, "countdown_cpu.py")
        study.base.task.four = 0.1  # as in the table
        study.base.update_from_flattened_dict(changes)
        if name == "common":
            study.sweeps = _sweeps(SWEEPS)
        else:
            study.sweeps = _sweeps(CALL_REWARD, study.seeds)
        config.regimes[name] = study
    # Its protocol (docs/regimes.md) has the first table's steps and reward.
    config.regimes.arithmetic = _study(size, "arithmetic_cpu.py", table="first")
    for name, shares in RECALL.items():
        study = _study(size, "recall_cpu.py", table="first")
        study.base.task.update(shares)
        own = _load("recall_cpu.py").get_config(size).learning
        study.base.learning.reward.call = own.reward.call
        study.base.learning.optimizer.rate = own.optimizer.rate
        at = RECALL_CALL_REWARDS.get(name, (0.3, 0.6))
        sweeps = {"call_reward": ("learning.reward.call", at)}
        study.sweeps = _sweeps(sweeps, study.seeds)
        if name == "recall_unnoticed":
            study.sweeps.update(_sweeps({"group": SWEEPS["group"]}))
        config.regimes[name] = study
    config.regimes.arithmetic.sweeps = _sweeps(ARITHMETIC_SWEEPS)
    if size == "smoke":
        for name in ("weak", "hopeless", "recall_noticed", "recall_able"):
            del config.regimes[name]
        del config.regimes.common.sweeps.group, config.regimes.common.sweeps.rate
        for name in ("early", "arithmetic", "recall_unnoticed"):
            config.regimes[name].sweeps = ConfigDict()
    return config


def _sweeps(sweeps: dict, seeds: tuple[int, ...] = (200, 201)) -> ConfigDict:
    made = {
        name: {"setting": setting, "at": at, "methods": METHODS, "seeds": seeds}
        for name, (setting, at) in sweeps.items()
    }
    return ConfigDict(made)


def _study(size: str, base: str, table: str = "main") -> ConfigDict:
    """Start, Dr.GRPO, GAPG without filter and GAPG, on prompts and seeds that no table has.

    Post-training is as in a form of the table, but for the shape of its batches.
    """
    study = _load("countdown_cpu_table.py").get_config("smoke" if size == "smoke" else table)
    learning = study.base.learning
    study.base = _load(base).get_config(size)
    del study.base.seed  # a study has `seeds`
    learning.batch = study.base.learning.batch
    study.base.learning = learning
    study.base.task.seed = 3
    study.base.evaluation.validation_prompts = study.base.task.validation
    study.base.evaluation.every = learning.steps
    study.seeds = (200, 201) if size == "smoke" else (200, 201, 202, 203, 204)
    for name in set(study.methods) - set(METHODS):
        del study.methods[name]
    study.routed, study.routers, study.samples = None, ConfigDict(), 0
    study.sweeps = ConfigDict()
    return study


def _load(name: str):
    """A config file beside this one, which need not be importable."""
    path = Path(__file__).with_name(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
