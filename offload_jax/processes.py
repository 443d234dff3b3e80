"""The processes of one job: each runs the same program, on its share of the devices.

Arrays are global, and XLA moves what of them must move. What the hosts have to agree on besides
(judgements, the cloud's answers, whether to stop) goes through process 0, over jax's coordination
service: no device takes part, so that a thread may do it while the devices compute. With one
process everything here is the identity.
"""

import functools
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from offload_jax.settings import require

T = TypeVar("T")

_WAIT_MS = 24 * 3600 * 1000  # a peer that is gone is noticed by the service, not by this
_LEFT, _LEAVE_SECONDS = "offload_jax/left", 5.0
_exchanges = itertools.count()


class PeerError(Exception):
    """Another process of the job cannot go on; the message says which and why."""


def join(job: str) -> None:
    """Makes this process one of a job's. To be called before jax is used for anything else.

    Args:
        job: "" for one process; "auto" for what jax finds of its cluster (a TPU slice, SLURM, GKE,
            Open MPI); "INDEX/COUNT@HOST:PORT" by hand, HOST:PORT being free on process 0's machine.

    Raises:
        ValueError: it is none of these, no cluster is found, or the others do not come.
    """
    if not job:
        return
    by_hand = re.fullmatch(r"(\d+)/(\d+)@(\S+:\d+)", job)
    require(
        job == "auto" or by_hand is not None,
        f"--processes={job!r} is neither 'auto' nor INDEX/COUNT@HOST:PORT.",
    )
    address, number, place = None, None, None
    if by_hand:
        place, number, address = int(by_hand[1]), int(by_hand[2]), by_hand[3]
        require(place < number, f"--processes={job!r}: INDEX counts from 0 to COUNT - 1.")
    try:
        jax.distributed.initialize(address, number, place)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--processes={job!r}: the job cannot be joined: {reason}") from None


def count() -> int:
    """How many processes the job has."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files, prints, and asks the cloud."""
    return count() == 1 or jax.process_index() == 0


def fetch(tree: Any) -> Any:
    """Host copies (numpy) of global arrays, whole on every process. Every process must call it."""
    if count() == 1:
        return jax.device_get(tree)
    return jax.device_get(jax.tree.map(_whole, tree))


def _whole(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    return _replicated(NamedSharding(x.sharding.mesh, PartitionSpec()))(x)


@functools.cache
def _replicated(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=sharding)


def gather(value: T) -> list[T]:
    """Every process's value (JSON), in their order. Every process must call it."""
    return _gathered(lambda: value)


def tell(make: Callable[[], T]) -> T:
    """Process 0's result (JSON) of an action that it alone takes, on every process."""
    return _gathered(make if is_main() else lambda: None)[0]


def spread(function: Callable[[Sequence[T]], list[Any]], items: Sequence[T]) -> list[Any]:
    """`function(items)`, which gives one JSON value per item; each process does a share of them."""
    edges = [len(items) * i // count() for i in range(count() + 1)]
    me = jax.process_index() if count() > 1 else 0
    parts = _gathered(lambda: function(items[edges[me] : edges[me + 1]]))
    return list(itertools.chain(*parts))


def together(action: Callable[[], T]) -> T:
    """The result of an action that every process takes, each its own."""
    results = []
    _gathered(lambda: results.append(action()))
    return results[0]


def main_first(action: Callable[[], T]) -> T:
    """An action that process 0 takes first, and the others when it is done (it makes files)."""
    if count() == 1:
        return action()
    result = together(lambda: action() if is_main() else None)
    return together(lambda: result if is_main() else action())


def _gathered(action: Callable[[], T]) -> list[T]:
    """Every process's result; where one fails, all stop: it with its error, the others with ours.

    Raises:
        PeerError: the action failed in another process.
    """
    if count() == 1:
        return [action()]
    try:
        result = action()
    except BaseException as error:
        _exchange({"error": str(error) or type(error).__name__})
        raise
    everything = _exchange({"result": result})
    for i, said in enumerate(everything):
        if "error" in said:
            raise PeerError(f"Process {i} of the job stopped: {said['error']}")
    return [said["result"] for said in everything]


def _exchange(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Everybody's messages, by way of process 0: 2 N transfers instead of N squared."""
    client, number, me = _client(), next(_exchanges), jax.process_index()
    folder = f"offload_jax/{number}/"
    if me:
        client.key_value_set_bytes(f"{folder}{me}", json.dumps(message).encode())
    else:
        said = [client.blocking_key_value_get_bytes(f"{folder}{i}", _WAIT_MS)
                for i in range(1, count())]  # fmt: skip
        everything = json.dumps([message, *map(json.loads, said)])
        client.key_value_set_bytes(f"{folder}all", everything.encode())
        if number:  # who takes part in this exchange has read the one before
            client.key_value_delete(f"offload_jax/{number - 1}/")
    return json.loads(client.blocking_key_value_get_bytes(f"{folder}all", _WAIT_MS))


def leave(status: int) -> None:
    """Ends a process that failed, without waiting for work of the others that never ends.

    Process 0 holds the service that they talk over, and jax aborts whoever finds it gone; so it
    goes last, some seconds later at most.
    """
    if count() == 1:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(Exception):  # whatever fails now, this process ends
        _go_last() if is_main() else _client().key_value_set(f"{_LEFT}/{jax.process_index()}", "")
    os._exit(status)  # jax would wait for the others at exit


def _go_last() -> None:
    end = time.monotonic() + _LEAVE_SECONDS
    for i in range(1, count()):
        left = max(int(1000 * (end - time.monotonic())), 1)
        _client().blocking_key_value_get(f"{_LEFT}/{i}", left)
    time.sleep(0.2)  # from the others' last words to their end


def _client() -> Any:
    from jax._src.distributed import global_state  # no public interface; orbax uses the same

    return global_state.client
