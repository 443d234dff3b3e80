"""What the paper's experiments share: rivals, cloud, evaluation, and the forms that they come in.

No experiment by itself. A form is a method's name (that method alone, for `experiments.launch`),
`table` (all of them, for `experiments.table`), `smoke` or `table_smoke`: GAPG, or the table, with a
tiny device LLM and a few problems, which `python -m experiments.rehearsal` writes.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

NO_FILTER = {"enabled": False}
# With one update per batch Dr.GRPO is GAPG without filter (see docs/reproduction.md).
DR_GRPO = {"name": "dr_grpo", "updates": 2, "clip": 0.2}
GRPO = {"name": "grpo", "updates": 1, "clip": 0.2}
ON_POLICY = {"name": "gapg", "updates": 1, "clip": 0.2}
METHODS = {  # what differs from GAPG
    "task_tuned": {"objective": GRPO, "filter": NO_FILTER, "reward": {"call": 0.0}},
    "collaboration_aware": {"objective": DR_GRPO, "filter": NO_FILTER},
    "collaboration_aware_grpo": {"objective": GRPO, "filter": NO_FILTER},
    "gapg_without_filter": {"objective": ON_POLICY, "filter": NO_FILTER},
    "gapg": {},
}
FORMS = (*METHODS, "table", "smoke", "table_smoke")
REHEARSAL = "runs/rehearsal"

TASKS = {
    "math": {
        "name": "math",
        "files": "data/math",
        "train": "math_lighteval",
        "test": "math_lighteval",
        "validation": 500,
        "workers": 8,
    },
    # Generated, with the ranges of the paper's set (TinyZero's), half of three numbers.
    "countdown": {
        "name": "countdown",
        "train": 5000,
        "validation": 500,
        "test": 1000,
        "four": 0.5,
        "numbers": (1, 99),
        "targets": (10, 99),
        "seed": 0,
    },
}
CLOUD = {"math": 0.984, "countdown": 0.946}  # the paper's accuracy of its cloud
TEST_PROMPTS = {"math": 4998, "countdown": 1000}  # two of MATH's problems have no answer


def in_form(config: ConfigDict, form: str) -> ConfigDict:
    """An experiment in one of `FORMS`.

    Args:
        config: task's name, device, sampling, GAPG's learning, mesh.
        form: which.
    """
    if form not in FORMS:
        raise ValueError(f"the paper's configs take {', '.join(FORMS)}, not {form!r}.")
    _complete(config)
    if form.endswith("smoke"):
        _shrink(config)
    if form.startswith("table"):
        return _table(config, form == "table_smoke")
    if form in METHODS:
        config.learning.update(ConfigDict(METHODS[form]))
    return config


def _complete(config: ConfigDict) -> None:
    """All sections besides those that shape a step."""
    task = config.task.name
    config.task = ConfigDict(TASKS[task])
    config.device.pretrained = placeholder(str)  # a checkpoint of the shape that is given
    config.cloud = ConfigDict({"kind": "oracle", "accuracy": CLOUD[task], "seed": 0})
    # The objectives' gradients differ in scale by orders of magnitude, so that any bound on the
    # norm would bind for some methods only. AdamW does not see the scale.
    config.learning.optimizer.clip = 1e6
    config.start = ConfigDict(
        {
            "steps": 0,  # the instruct model, as it is
            "batch": config.learning.batch.to_dict(),
            "optimizer": {"rate": 1e-5},
            "traces": {"kind": task},
        }
    )
    config.evaluation = ConfigDict(
        {
            "every": 50,
            "validation_prompts": 500,
            "test_prompts": TEST_PROMPTS[task],
            "cap": 0.3,
            "batch": 512,
        }
    )


def _table(config: ConfigDict, smoke: bool) -> ConfigDict:
    """Every row of the paper, three seeds."""
    optimizer = {"rate": 1e-3, "schedule": "cosine", "warmup_steps": 50, "weight_decay": 0.01}
    router = {"reads": "prompt", "body": "deberta", "optimizer": optimizer, "epochs": 20}
    del config.seed  # a study has `seeds`
    return ConfigDict(
        {
            "base": config,
            "seeds": (0,) if smoke else (0, 1, 2),
            "methods": {
                name: {"learning": changes} if changes else {} for name, changes in METHODS.items()
            },
            "routed": "task_tuned",
            "routers": {"prompt_router": {**router, "epochs": 1, "batch": 8} if smoke else router},
            "samples": 0,
            "sweeps": {},
        }
    )


def _shrink(config: ConfigDict) -> None:
    """Every step of it in a minute or two, on the rehearsal's files; nothing is learnt."""
    family = "qwen2" if config.device.get("query_key_value_bias") else "llama"
    kept = ("param_dtype", "compute_dtype", "remat")
    config.device = ConfigDict({name: config.device[name] for name in kept})
    config.device.pretrained = f"{REHEARSAL}/{family}"
    if config.task.name == "math":
        config.task.update({"files": f"{REHEARSAL}/math", "validation": 8, "workers": 1})
    else:
        config.task.update({"train": 64, "validation": 8, "test": 16, "four": 0.0})
        config.start.traces.max_tokens = 40
    batch = {"prompts": 8, "micro_prompts": 4, "length_buckets": 1}
    config.sampling.update(
        {"group": 4, "prompt_tokens": 256, "response_tokens": 96, "cache_tokens": 32}
    )
    config.start.update({"steps": 30, "batch": batch, "optimizer": {"rate": 1e-2}})
    config.learning.steps = 2
    config.learning.batch.update(batch)
    config.evaluation.update({"every": 2, "validation_prompts": 8, "test_prompts": 16, "batch": 8})
