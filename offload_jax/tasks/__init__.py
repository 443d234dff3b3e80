"""What is asked and how responses are judged."""

from pathlib import Path

from offload_jax.settings import require
from offload_jax.tasks.task import Task
from offload_jax.vocabulary import Vocabulary


def make_task(
    name: str, data_dir: str | Path, vocabulary: Vocabulary | None = None, **settings
) -> Task:
    """The task called `name`.

    Args:
        name: "countdown", "arithmetic", "math" or "recall".
        data_dir: where a dataset may be built.
        vocabulary: of the pretrained device LLM that is asked; Countdown and arithmetic have one of
            their own, recall knows no other.
        settings: the task's own fields of `config.task`.
    """
    if name == "countdown":
        from offload_jax.tasks.countdown.task import CountdownTask

        return CountdownTask(data_dir, vocabulary, **settings)
    if name == "arithmetic":
        from offload_jax.tasks.arithmetic.problems import ProblemConfig
        from offload_jax.tasks.arithmetic.task import ArithmeticTask

        sizes = {key: settings.pop(key) for key in ("train", "validation", "test", "seed")}
        return ArithmeticTask(vocabulary, **sizes, config=ProblemConfig(**settings))
    if name == "math":
        from offload_jax.tasks.math.task import MathConfig, MathTask

        return MathTask(data_dir, vocabulary, MathConfig(**settings))
    if name == "recall":
        from offload_jax.tasks.recall import RecallConfig, RecallTask

        require(
            vocabulary is None,
            "config.task.name is 'recall', which a pretrained device LLM cannot be asked.",
        )
        sizes = {key: settings.pop(key) for key in ("train", "validation", "test", "seed")}
        return RecallTask(**sizes, config=RecallConfig(**settings))
    raise ValueError(
        f"config.task.name = {name!r} is not a task; there are countdown, arithmetic, math and"
        " recall"
    )
