"""Reading the command line: a mistake in a config is one sentence."""

import sys
from collections.abc import Callable

from absl import app, flags


def parser(config: flags.FlagHolder) -> Callable[[list[str]], list[str]]:
    """A parser for `app.run`; a mistake in the flags or in the file is status 2."""

    def parse_flags(argv: list[str]) -> list[str]:
        try:
            rest = app.parse_flags_with_usage(argv)
            values = config.value  # where the file could not be read, this is what tells
            if values is not None:
                values.lock()
            return rest
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            # The config's own errors are wrapped in one another and laid out over several lines.
            while error.args and isinstance(error.args[0], Exception):
                error = error.args[0]
            text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            print(f"Error: --config: {' '.join(text.split())}", file=sys.stderr)
            sys.exit(2)

    return parse_flags
