"""What every command line of the toolkit shares: one clear line for the user's mistakes, progress.

``InputError`` is a mistake in what was given (a file, a key, a value): its message says what, where and
what is allowed. Everything else is ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from diffbase.exits import BAD_INPUT

LOG_SECONDS = 60
"""Between two lines of progress in a log."""
T = TypeVar("T")


class InputError(ValueError):
    """A user's mistake, with a message of one line."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are InputErrors too, without argparse's usage lines before them."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError with what argparse complains of."""
        raise InputError(message)


def run(main: Callable[[], T], hold_back: float = 0) -> T:
    """Run a command, return what it does; a user's mistake ends it with one line on stderr and exit code 2.

    ``hold_back`` is how many seconds the line waits: for processes of which another one says it first.

    An OSError (unwritable output, full disk, missing file) counts as one: its text names the path.
    """
    try:
        return main()
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


def fail(message: str) -> NoReturn:
    """Print ``error: message`` as one line on stderr and leave with exit code 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(BAD_INPUT)


@contextmanager
def progress_bar(doing: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with rate and time left on a terminal; in a log one line per minute.

    Yields ``report(done, total)``, both in images; total is None while it is unknown.
    """
    start = shown = time.monotonic()

    def rate(done: int) -> str:
        return f"{done / max(time.monotonic() - start, 1e-9):.0f} images/s"

    if not sys.stderr.isatty():

        def tell(done: int, total: int | None) -> None:
            nonlocal shown
            if time.monotonic() - shown >= LOG_SECONDS:
                shown = time.monotonic()
                of = f" of {total:,}" if total else ""
                print(f"{doing}: {done:,}{of} images, {rate(done)}", file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("", total=None, rate="")

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, rate=rate(done))

        yield show
