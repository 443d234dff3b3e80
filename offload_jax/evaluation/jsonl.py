"""JSON lines, read with suspicion and written whole: one JSON object a line."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not JSON")


def encode(row: Mapping[str, Any]) -> str:
    """One object as one line, newline included. Raises ValueError at NaN and infinities."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def decode(line: bytes) -> dict[str, Any]:
    """One line back to its object. Raises ValueError where the line is no JSON object."""
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"it is a {type(row).__name__}, not an object")
    return row


def read_lines(path: str | os.PathLike, drop_partial: bool = False) -> list[dict[str, Any]]:
    """All objects of a file, in order.

    Args:
        path: the file.
        drop_partial: forgive a last line that is not whole, as a killed writer leaves it.

    Raises ValueError naming the file and the line (from 1) that is not a JSON object.
    """
    *lines, rest = Path(path).read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate([*lines, rest] if rest else lines, 1):
        try:
            rows.append(decode(line))
        except ValueError as error:
            # Only what no newline ended can be half-written; anything else is damage.
            if drop_partial and number > len(lines):
                break
            raise ValueError(f"{path}, line {number}, is not a JSON object: {error}") from None
    return rows


def write_lines(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the whole file or nothing: a temporary file beside it, then a rename.

    A reader, or a run killed in between, sees the old file or the new one, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(encode(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
