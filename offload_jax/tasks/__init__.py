"""What is asked and how responses are judged."""

from pathlib import Path

from offload_jax.tasks.task import Task


def make_task(name: str, data_dir: str | Path, **settings) -> Task:
    """The task called `name`; `settings` are the task's own fields of `config.task`."""
    if name == "countdown":
        from offload_jax.tasks.countdown.task import CountdownTask

        return CountdownTask(data_dir, **settings)
    raise ValueError(f"config.task.name = {name!r} is not a task; there is countdown")
