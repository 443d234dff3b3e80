"""Tiny checkpoints and problems for the `:smoke` forms: `python -m experiments.rehearsal`."""

import sys

from absl import app, flags

from offload_jax.training.rehearsal import write_rehearsal

TO = flags.DEFINE_string("to", "runs/rehearsal", "The new folder; the smoke forms look there.")


def main(argv: list[str]) -> None:
    """Writes, and says where; a mistake is one sentence on stderr, status 2."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        write_rehearsal(TO.value)
        print(f"{TO.value}: checkpoints with random weights, and sums in MATH's form")
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
