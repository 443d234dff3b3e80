"""A checkpoint on data sets that it was not trained on, each with its records, and a table.

`python -m experiments.evaluate --checkpoint=runs/x/checkpoints/gapg --tasks=math500,amc23
--config.files=DIR --workdir=runs/x-out`. A checkpoint is a stage's folder, a Hugging Face folder or
a GGUF file. The same command goes on where it was interrupted; more tasks may be added.
"""

import sys

import rich.console
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.endings import told
from experiments.flags import parser, with_config
from offload_jax.training.out_of_domain import evaluate_tasks

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "How: lengths, cloud, cap, mesh; configs/out_of_domain.py if not given."
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "What is evaluated.")
TASKS = flags.DEFINE_list("tasks", None, "Names of data sets, e.g. math500,amc23.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where records and table go.")


def main(argv: list[str]) -> None:
    """Evaluates what is missing; a mistake is one sentence on stderr, status 2."""
    logging.set_verbosity(logging.ERROR)
    console = rich.console.Console()
    with told():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        config = CONFIG.value.to_dict()
        evaluate_tasks(config, CHECKPOINT.value, TASKS.value, WORKDIR.value, console)


if __name__ == "__main__":
    sys.argv = with_config(sys.argv, "out_of_domain.py")
    flags.mark_flags_as_required(["checkpoint", "tasks", "workdir"])
    app.run(main, flags_parser=parser(CONFIG))
