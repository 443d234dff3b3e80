"""Serves a trained pair: `python -m experiments.serve --checkpoint=runs/x/checkpoints/gapg`.

An OpenAI-compatible endpoint, http://127.0.0.1:8000/v1. `--config=configs/serve.py:TASK,CLOUD`
says what is asked and who answers calls; any setting can be overridden, such as
`--config.threshold_file=threshold.json` (see docs/serving.md).
"""

import resource
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.flags import parser, with_config
from offload_jax.cloud.protocol import CloudError
from offload_jax.serving.build import Serving, from_config, open_service

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "How: task, cloud, dial, limits; configs/serve.py if not given."
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The device LLM.")
WORKDIR = flags.DEFINE_string("workdir", "runs/serve", "Where the ledger lies; its budget is used.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Where to listen; nobody is asked for a key.")
PORT = flags.DEFINE_integer("port", 8000, "Where to listen; 0: a free one.", 0, 65535)


def main(argv: list[str]) -> None:
    """Serves until interrupted; a mistake is one sentence on stderr, status 2."""
    logging.set_verbosity(logging.ERROR)
    signal.signal(signal.SIGTERM, _end)
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        serve(from_config(CONFIG.value.to_dict()), CHECKPOINT.value, WORKDIR.value)
    except (ValueError, CloudError, ImportError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def serve(settings: Serving, checkpoint: str, workdir: str) -> None:
    """Serves until a signal; answers that are under way then are still given."""
    from offload_jax.serving.app import make_app

    listener = _listener(HOST.value, PORT.value)  # a port that is taken is told at once
    with listener, open_service(settings, checkpoint, workdir, _engine) as service:
        server = _server(make_app(service), settings.patience)
        at = f"http://{HOST.value}:{listener.getsockname()[1]}"
        print(f"{service.model} is served on {at}/v1 (page: {at}/)", flush=True)
        server.run(sockets=[listener])


def _engine(*args: Any) -> Any:
    from offload_jax.serving.engine import EngineConfig, SlotEngine

    params, sampler, slots, queue = args
    return SlotEngine(params, sampler, EngineConfig(slots=slots, queue=queue))


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # or another server might; who comes early waits until it is warm
    except OSError as error:
        listener.close()
        raise ValueError(f"--host={host} --port={port} cannot be used: {error}.") from None
    return listener


def _server(application: Any, patience: float) -> Any:
    import uvicorn

    # A connection is a file: as many as the system allows, not the shell's usual 1,024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    config = uvicorn.Config(
        application,
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(patience) + 1,
    )
    return uvicorn.Server(config)


def _end(*_: Any) -> None:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.argv = with_config(sys.argv, "serve.py")
    flags.mark_flags_as_required(["checkpoint"])
    app.run(main, flags_parser=parser(CONFIG))
