"""Compares methods: `python -m experiments.table --config=configs/x_table.py --workdir=DIR`.

Trains what is missing, evaluates it, and writes table.{md,tex,json}, validation.md and figures;
running the same command again in the same workdir resumes it. `--paper=table1` trains nothing: it
sets finished runs, a folder in DIR per experiment (see docs/reproduction.md), beside the paper's
numbers.
"""

import rich.console
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.endings import told
from experiments.flags import parser
from offload_jax.evaluation.paper import PAPER
from offload_jax.settings import require
from offload_jax.training import paper_report, study_report
from offload_jax.training.study import compute, from_config

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The study, e.g. configs/x_table.py[:smoke]."
)
EXHIBIT = flags.DEFINE_enum("paper", None, list(PAPER), "A table or figure of the paper.")
WORKDIR = flags.DEFINE_string("workdir", None, "The study's folder; made if it is not there.")
OVER_CAP = flags.DEFINE_enum(
    "over_cap",
    "wrong",
    ["wrong", "device"],
    "What a policy's call beyond the cap is: wrong, or answered by the device without the offer to"
    " call.",
)


def main(argv: list[str]) -> None:
    """Parses, checks, computes and reports; a mistake is one sentence on stderr, status 2."""
    console = rich.console.Console()
    logging.set_verbosity(logging.ERROR)  # orbax tells every step of every save
    with told():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        require(
            (CONFIG.value is None) != (EXHIBIT.value is None), "give either --config or --paper."
        )
        if EXHIBIT.value is not None:
            paper_report.report(EXHIBIT.value, WORKDIR.value, console, OVER_CAP.value)
            return
        study = from_config(CONFIG.value)
        compute(study, WORKDIR.value, console)
        study_report.report(study, WORKDIR.value, console, OVER_CAP.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    app.run(main, flags_parser=parser(CONFIG))
