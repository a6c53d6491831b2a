"""What every command line of the toolkit shares: one clear line for the user's mistakes.

``InputError`` is a mistake in what was given (a file, a key, a value): its message says what, where and
what is allowed. Everything else is ours and keeps its traceback.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

EXIT_BAD_INPUT = 2


class InputError(ValueError):
    """A user's mistake, told in one line."""


def run(main: Callable[[], None], hold_back: float = 0) -> None:
    """Run a command; a user's mistake ends it with one line on stderr and exit code 2.

    ``hold_back`` is how many seconds the line waits: for processes of which another one says it first.

    An OSError (unwritable output, full disk, missing file) counts as one: its text names the path.
    """
    try:
        main()
    except InputError as error:
        time.sleep(hold_back)
        fail(str(error))
    except OSError as error:
        time.sleep(hold_back)
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def fail(message: str) -> None:
    """Print ``error: message`` as one line on stderr and leave with exit code 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
