"""Reading the command line: a mistake in a config is one sentence."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags


def parser(config: flags.FlagHolder) -> Callable[[list[str]], list[str]]:
    """A parser for `app.run`; a mistake in the flags or in the file is status 2."""

    def parse_flags(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            values = config.value  # where the file could not be read, this is what tells
            if values is not None:
                values.lock()
            if "workdir" in flags.FLAGS and flags.FLAGS["workdir"].value == "":
                raise flags.ValidationError("--workdir is empty; name a folder.")
            return rest
        except MISTAKES as error:
            print(f"Error: {sentence(error, argv)}", file=sys.stderr)
            sys.exit(2)

    return parse_flags


# What reading flags and a config raises.
MISTAKES = (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError)


def sentence(error: Exception, argv: list[str]) -> str:
    """One of `MISTAKES` in a sentence."""
    if isinstance(error, flags.Error):
        return _of_flag(str(error))
    # The config's own errors are wrapped in one another and laid out over several lines.
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    said = _missing(error, argv) if isinstance(error, KeyError) else _unread(str(error))
    return " ".join(said.split())


def _missing(error: KeyError, argv: list[str]) -> str:
    """Which flag sets what the config does not have; ml_collections names its last part alone."""
    text = str(error.args[0])
    key, hint = text.removeprefix("'").partition("'")[::2]
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0]
        if name.startswith("config.") and key in name.split("."):
            return f"--{name} is not in the config.{hint}"
    return f"--config: {text}"


def _unread(text: str) -> str:
    """Why the config could not be read; ml_collections tells of all the places it looked in."""
    absent = re.search(r"No such file or directory: (.*)", text)
    return f"--config: there is no file {absent[1]}." if absent else f"--config: {text}"


def _of_flag(text: str) -> str:
    """A flag's mistake; of a config that raised one, its sentence without the traceback."""
    flag, traceback, rest = text.partition(" Error whilst parsing config file:")
    if not traceback:
        return " ".join(text.split())
    _, _, said = rest.strip().rpartition("\n")[2].partition(": ")
    return f"{flag.removeprefix('flag ')} {said}"


def with_config(argv: list[str], name: str) -> list[str]:
    """The command line with a config, which a flag's default may not be: it is read too early.

    Args:
        argv: the command line.
        name: of the file in configs/ that is meant where none is given.
    """
    if any(argument.lstrip("-").partition("=")[0] == "config" for argument in argv[1:]):
        return argv
    usual = Path(__file__).parents[1] / "configs" / name
    return [argv[0], f"--config={usual}", *argv[1:]]
