"""Who answers a call."""

from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from offload_jax import processes
from offload_jax.cloud.device import DeviceCloud, DeviceCloudConfig
from offload_jax.cloud.ledger import Ledger
from offload_jax.cloud.openai import OpenAIConfig
from offload_jax.cloud.oracle import Oracle, OracleConfig
from offload_jax.cloud.protocol import Cloud
from offload_jax.cloud.replay import Replay, ReplayConfig
from offload_jax.cloud.shared import SharedCloud
from offload_jax.settings import require
from offload_jax.tasks.task import Task

CloudConfig = OracleConfig | OpenAIConfig | ReplayConfig | DeviceCloudConfig


def make_cloud(config: CloudConfig, task: Task, workdir: str | Path, mesh: Mesh) -> Cloud:
    """The cloud that a config describes.

    Args:
        config: which, and how.
        task: what it is asked; an oracle needs its solver.
        workdir: the run's folder: where a ledger lies that has no path of its own, and whose
            account is drawn on.
        mesh: where a cloud of our own runs.

    Raises:
        ValueError: something that the cloud needs is missing or does not fit.
    """
    if isinstance(config, OracleConfig):
        require(
            hasattr(task, "right_answer"),
            f"config.cloud.kind = 'oracle' needs a solver, {task.name} has none.",
        )
        return Oracle(
            task.right_answer, task.wrong_answer, config.accuracy, config.seed, task.answer_form
        )
    if isinstance(config, DeviceCloudConfig):
        return DeviceCloud(config, mesh)
    if isinstance(config, ReplayConfig):
        return _shared(lambda: Replay(config))
    return _shared(lambda: _openai(config, Path(workdir).resolve()))


def _openai(config: OpenAIConfig, workdir: Path) -> Cloud:
    from offload_jax.cloud.openai import OpenAICloud

    path = workdir / "cloud.sqlite" if config.ledger is None else Path(config.ledger)
    return OpenAICloud(config, Ledger(path, str(workdir), config.budget))


def _shared(make: Callable[[], Cloud]) -> Cloud:
    return make() if processes.count() == 1 else SharedCloud(make)
