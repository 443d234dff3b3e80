"""The pair behind a socket: uvicorn around the app."""

import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn

from offload_jax.device.params import Params
from offload_jax.sampling.sampler import Sampler
from offload_jax.serving.app import Service, make_app
from offload_jax.serving.build import Serving, open_service
from offload_jax.serving.engine import EngineConfig, SlotEngine
from offload_jax.settings import require


def serve(settings: Serving, checkpoint: str, workdir: str | Path, host: str, port: int) -> None:
    """Serves until a signal; answers that are under way then are still given.

    Raises:
        ValueError: something does not fit; a port that is taken is told before anything is read.
    """
    with (
        listening(host, port) as listener,
        open_service(settings, checkpoint, workdir, _engine) as service,
    ):
        at = f"http://{host}:{listener.getsockname()[1]}"
        server = _server(service, settings.patience)
        print(f"{service.model} is served on {at}/v1 (page: {at}/)", flush=True)
        server.run(sockets=[listener])


@contextmanager
def serving(settings: Serving, checkpoint: str, workdir: str | Path) -> Iterator[str]:
    """The URL of a pair that is served on a free port of loopback, in a thread, meanwhile.

    Raises:
        ValueError: something does not fit.
    """
    with (
        listening("127.0.0.1", 0) as listener,
        open_service(settings, checkpoint, workdir, _engine) as service,
    ):
        server = _server(service, settings.patience)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                require(thread.is_alive(), "The server ended while it started.")
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; whoever comes before the engine is warm waits.

    Raises:
        ValueError: it cannot.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # before anything is read: another server might take the port
    except OSError as error:
        listener.close()
        raise ValueError(f"--host={host} --port={port} cannot be used: {error}.") from None
    return listener


def _engine(params: Params, sampler: Sampler, slots: int, queue: int) -> SlotEngine:
    return SlotEngine(params, sampler, EngineConfig(slots=slots, queue=queue))


def _server(service: Service, patience: float) -> uvicorn.Server:
    # A connection is a file: as many as the system allows, not the shell's usual 1,024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    config = uvicorn.Config(
        make_app(service),
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(patience) + 1,
    )
    return uvicorn.Server(config)
