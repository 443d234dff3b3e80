"""How a program that trains ends when it cannot go on: one sentence and a status."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from offload_jax import processes
from offload_jax.cloud.protocol import CloudError
from offload_jax.processes import PeerError
from offload_jax.training.detectors import RunError
from offload_jax.training.loop import PreemptedError


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Ends the program with one sentence on stderr: status 2 for a mistake, 1 for a failure.

    One that was stopped by a signal ends with that signal's status. A process of a job of several
    does not wait for the others.
    """
    try:
        yield
    except (ValueError, RunError, CloudError, PeerError) as error:
        print(f"Error: {error}", file=sys.stderr)
        processes.leave(2 if isinstance(error, ValueError) else 1)
    except OSError as error:  # a full disk, a folder that is gone
        print(f"Error: {error}", file=sys.stderr)
        processes.leave(1)
    except PreemptedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
