"""Who answers a call."""

from offload_jax.cloud.oracle import Oracle
from offload_jax.cloud.protocol import Cloud
from offload_jax.tasks.task import Task


def make_cloud(kind: str, task: Task, **settings) -> Cloud:
    """The cloud of a kind for a task; `settings` are the kind's own fields of `config.cloud`."""
    if kind == "oracle":
        if not hasattr(task, "right_answer"):
            raise ValueError(f"config.cloud.kind = 'oracle' needs a solver, {task.name} has none")
        return Oracle(task.right_answer, task.wrong_answer, **settings)
    raise ValueError(f"config.cloud.kind = {kind!r} is not a cloud; there is oracle")
