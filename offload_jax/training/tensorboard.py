"""TensorBoard's files of one stage, on the disk as soon as they are written.

In a module of its own, imported when a run begins to log: tensorboardX imports torch where that is
installed, two seconds that no refusal of bad input should wait for.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class Board:
    """A folder's newest file. The usual SummaryWriter queues rows, which a kill loses."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        # Files are named by the second: a run resumed within it would overwrite the first's.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds points at a step, by tag."""
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=points)))

    def restart(self, step: int) -> None:
        """Makes TensorBoard hide what the folder's files have at this step or later."""
        self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()
