"""Runs an experiment: `python -m experiments.launch --config=configs/x.py --workdir=DIR`.

Any setting can be overridden on the command line (`--config.learning.steps=200`); running the same
command again in the same workdir resumes it.
"""

import rich.console
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.endings import told
from experiments.flags import parser
from offload_jax import processes
from offload_jax.training.experiment import from_config
from offload_jax.training.run import run

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, e.g. configs/x.py[:smoke]."
)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; made if it is not there.")
PROCESSES = flags.DEFINE_string(
    "processes",
    "",
    "This process's place in a job of several: 'auto' on a TPU slice, SLURM or GKE, or"
    " INDEX/COUNT@HOST:PORT of process 0.",
)


def main(argv: list[str]) -> None:
    """Parses, checks and runs; a mistake in the settings is one sentence on stderr, status 2."""
    console = rich.console.Console()
    logging.set_verbosity(logging.ERROR)  # orbax tells every step of every save
    with told():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        experiment = from_config(CONFIG.value)
        processes.join(PROCESSES.value)
        run(experiment, WORKDIR.value, console)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parser(CONFIG))
