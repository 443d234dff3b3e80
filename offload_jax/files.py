"""JSON files: read as untrusted, written whole."""

import json
import os
from pathlib import Path
from typing import Any

from offload_jax.settings import require


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming the file where there is none."""
    require(path.is_file(), f"{path} is missing.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        values = None
    require(isinstance(values, dict), f"{path} is not a JSON object.")
    return values


def write_object(path: Path, values: Any) -> None:
    """Indented, in UTF-8; the file appears whole or not at all, whoever else writes it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
