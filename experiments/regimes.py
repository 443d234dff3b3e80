"""Maps where GAPG differs from its rivals, with `--config=configs/regimes_cpu.py --workdir=DIR`.

Trains what is missing of every regime, a study in a folder of its own in DIR, and writes
regimes.md, regimes.json and regimes.png; the same command again goes on. `--only=early,common`
leaves the others as they are: what is complete is on the map.
"""

import rich.console
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.endings import told
from experiments.flags import parser
from offload_jax.training import regimes

CONFIG = config_flags.DEFINE_config_file("config", None, "The regimes, e.g. configs/x.py[:smoke].")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of all regimes; made if not there.")
ONLY = flags.DEFINE_list("only", None, "Names of the regimes to train, parted by commas.")


def main(argv: list[str]) -> None:
    """Parses, checks, computes and reports; a mistake is one sentence on stderr, status 2."""
    console = rich.console.Console()
    logging.set_verbosity(logging.ERROR)  # orbax tells every step of every save
    with told():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        studies = regimes.from_config(CONFIG.value)
        regimes.compute(studies, WORKDIR.value, console, ONLY.value)
        regimes.report(studies, WORKDIR.value, console)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parser(CONFIG))
