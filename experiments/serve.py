"""Serves a trained pair: `python -m experiments.serve --checkpoint=runs/x/checkpoints/gapg`.

An OpenAI-compatible endpoint, http://127.0.0.1:8000/v1. `--config=configs/serve.py:TASK,CLOUD`
says what is asked and who answers calls; any setting can be overridden, such as
`--config.threshold_file=threshold.json` (see docs/serving.md).
"""

import signal
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.flags import parser, with_config
from offload_jax.cloud.protocol import CloudError
from offload_jax.serving.build import from_config

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
        settings = from_config(CONFIG.value.to_dict())
        from offload_jax.serving.server import serve

        serve(settings, CHECKPOINT.value, WORKDIR.value, HOST.value, PORT.value)
    except (ValueError, CloudError, ImportError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _end(*_: Any) -> None:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.argv = with_config(sys.argv, "serve.py")
    flags.mark_flags_as_required(["checkpoint"])
    app.run(main, flags_parser=parser(CONFIG))
