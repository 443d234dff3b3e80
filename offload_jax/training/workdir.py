"""A run's folder: what it is a run of, and where things lie in it."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from offload_jax.files import write_object
from offload_jax.processes import is_main
from offload_jax.settings import require
from offload_jax.training.experiment import Experiment

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets",
            "tokenizers", "ml-collections", "numpy")  # fmt: skip
# What some experiments use: the extras of setup.py.
OPTIONAL = ("gguf", "jinja2", "openai", "tenacity", "genai-prices", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Names of everything that a run leaves behind."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def data(self) -> Path:
        """The built dataset."""
        return self.path / "data"

    def checkpoints(self, stage: str) -> Path:
        """The checkpoints of a stage."""
        return self.path / "checkpoints" / stage

    def records(self, policy: str) -> Path:
        """The per-prompt test records of a policy."""
        return self.path / "records" / f"{policy}.jsonl"


def open_workdir(path: str | Path, experiment: Experiment, without: Sequence[str] = ()) -> Workdir:
    """Makes the folder of a run, or comes back to it.

    Leaves `config.json` (the resolved settings) and `environment.json` (git revision, package
    versions, machine, command; where another revision or machine has come back to the folder, each
    in `afterwards`).

    Args:
        path: of the folder.
        experiment: what is run in it.
        without: sections of the settings in which the folder's parts differ, as in a study.

    Raises:
        ValueError: the folder cannot be written, or holds checkpoints or records made with other
            settings.
    """
    require(str(path) != "", "--workdir is empty; name the run's folder.")
    workdir = Workdir(Path(path).resolve())
    if not is_main():
        require(
            (workdir / "config.json").is_file(),
            f"--workdir={path} is not the folder that process 0 has opened: all processes of a job"
            " must share one.",
        )
        return workdir
    settings = json.loads(json.dumps(dataclasses.asdict(experiment)))
    settings = {name: value for name, value in settings.items() if name not in without}
    try:
        workdir.path.mkdir(parents=True, exist_ok=True)
        _claim(workdir, settings)
        _note_environment(workdir / "environment.json")
    except OSError as error:
        raise ValueError(f"--workdir={path} cannot be used: {error}.") from None
    return workdir


def _claim(workdir: Workdir, settings: dict[str, Any]) -> None:
    """Writes config.json, unless something was made with other settings."""
    config = workdir / "config.json"
    made = [*(workdir / "checkpoints").glob("*/*"), *(workdir / "records").glob("*")]
    if config.exists() and made:
        before = _read_json(config)
        changed = _differences(before, settings, "config")
        require(
            not changed,
            f"{workdir.path} holds a run with other settings ({'; '.join(changed[:3])}): give a new"
            " --workdir, or repeat the old settings to resume it.",
        )
    else:
        write_object(config, settings)


def _note_environment(path: Path) -> None:
    """Writes the environment, or adds it to the one that began the run, where it is another."""
    now = environment()
    first = _read_json(path) if path.exists() else now
    afterwards = first.pop("afterwards", [])
    seen = [{**each, "command": None} for each in (first, *afterwards)]
    if {**now, "command": None} not in seen:
        afterwards.append(now)
    write_object(path, {**first, "afterwards": afterwards} if afterwards else first)


def keep_programs(path: Path) -> None:
    """Compiled programs are kept in `path`, unless JAX_COMPILATION_CACHE_DIR names another folder.

    Then several runs can share them.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(path))


def claim_parts(path: Path, parts: Mapping[str, Any]) -> None:
    """Writes the settings of named parts to a JSON file, beside those that it already holds.

    Raises:
        ValueError: the file cannot be written, or holds a part with other settings.
    """
    parts = json.loads(json.dumps(parts))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = _read_json(path) if path.exists() else {}
        require(isinstance(before, Mapping), f"{path} is not a JSON object.")
        shared = {name: before[name] for name in parts if name in before}
        changed = _differences(shared, {name: parts[name] for name in shared}, "config")
        require(
            not changed,
            f"{path} holds other settings ({'; '.join(changed[:3])}): give a new"
            " --workdir, or repeat the old settings to resume it.",
        )
        write_object(path, {**before, **parts})
    except OSError as error:
        raise ValueError(f"{path} cannot be used: {error}.") from None


def environment() -> dict[str, Any]:
    """Where and with what this process runs."""
    return {
        "command": sys.argv,
        "git_revision": _git("rev-parse", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "cpu_cores": os.cpu_count(),
    }


def _versions() -> dict[str, str]:
    """Of the packages that an experiment may use; of the optional ones, those installed."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _differences(before: Any, now: Any, path: str) -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found = []
        for key in [*before, *(k for k in now if k not in before)]:
            found += _differences(before.get(key), now.get(key), f"{path}.{key}")
        return found
    return [] if before == now else [f"{path} was {before!r}, now {now!r}"]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
