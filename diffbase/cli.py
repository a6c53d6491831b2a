"""What every command line of the toolkit shares: one clear line for the user's mistakes, answers, progress.

A command's module has ``parser(prog)`` and ``main(argv, prog)``: it parses, calls a library and prints.

``InputError`` is a mistake in what was given (a file, a key, a value): its message says what, where and
what is allowed. Everything else is ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from diffbase import line, output
from diffbase.exits import BAD_INPUT, RETRYABLE
from diffbase.redaction import ADDRESS, shown, without_url_secrets
from diffbase.system_error import is_passing, told

LOG_SECONDS = 60
"""Between two lines of progress in a log."""
T = TypeVar("T")


LONGEST = 2_000
"""Characters of a message; a longer one loses its middle."""
CUT = 1 << 14
"""Characters of a text that are looked at, and no more: to hide URLs' secrets takes their number squared."""


def one_line(text: str) -> str:
    """``text`` on one line, as a terminal shows it, for a log, a ledger or a bug report.

    URLs have no password and no query; what is not printable is escaped; a long text loses its
    middle, and what lies behind ``CUT``.
    """
    text = line.printable(" ".join(without_url_secrets(text[:CUT]).split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 + 5 :]}"


class InputError(ValueError):
    """A user's mistake, with a message of one line: printable, whatever the names and values in it hold.

    URLs in it have lost their passwords and queries: messages end in logs, ledgers and bug reports.
    """

    def __init__(self, message: object = "") -> None:
        """``message`` as ``one_line`` writes it."""
        super().__init__(one_line(str(message)))


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are InputErrors too, without argparse's usage lines before them.

    Of every flag that takes text, a path, an int or a float it refuses what is no line, too large for 63 bits
    or not finite.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """As argparse's."""
        super().__init__(*arguments, **settings)
        for kind, convert in ((None, _text), (str, _text), (Path, _path), (int, _whole), (float, _finite)):
            self.register("type", kind, convert)

    def error(self, message: str) -> NoReturn:
        """Raise InputError with what argparse complains of."""
        raise InputError(message if len(message) <= 500 else f"{message[:500]} ...")


def _text(text: str) -> str:
    if problem := line.fault(text):
        raise argparse.ArgumentTypeError(problem)
    return text


def _path(text: str) -> Path:
    if ADDRESS.match(_text(text)):
        raise argparse.ArgumentTypeError(f"{shown(text)} is an address; allowed: a path")
    if problem := line.path_fault(text):
        raise argparse.ArgumentTypeError(problem)
    return Path(text)


def place(text: str) -> Path | str:
    """The type of a flag that takes a path or an address, which stays text: a Path would change it."""
    return _text(text) if ADDRESS.match(text) else _path(text)


def _whole(text: str) -> int:
    if len(text) > line.BITS or (number := int(text)).bit_length() > line.BITS:
        raise ValueError
    return number


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise argparse.ArgumentTypeError(f"{text!r:.40}; allowed: a finite number")
    return number


def between(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """The type of a flag that takes a whole number of this range, both ends included."""

    def convert(text: str) -> int:
        try:
            number = _whole(text)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            upper = f"to {most}" if most < 2**63 - 1 else "up"
            raise argparse.ArgumentTypeError(f"{text!r:.60}: allowed are whole numbers from {least} {upper}")
        return number

    return convert


def run(main: Callable[[], T], hold_back: float = 0, survive: bool = False) -> T:
    """Run a command, return what it does; a user's mistake ends it with one line on stderr and exit code 2.

    ``hold_back`` is how many seconds the line waits: for processes of which another one says it first.
    ``survive``: it is not for its output, and goes on where that cannot be written (``diffbase.output``).

    An OSError (unwritable output, full disk, missing file) counts as one: its text names the path. One that
    may pass (``system_error.PASSING``) ends with 75 instead: the same command may go on later.
    """
    os.umask(os.umask(0o002) | 0o002)  # what it makes, nobody may change but the group that the umask trusts
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # what it starts takes no module of the current folder
    with output.guarded(survive):
        return _run(main, hold_back)


def _run(main: Callable[[], T], hold_back: float) -> T:
    try:
        try:
            return main()
        finally:
            output.flush()  # what is not taken is told here, not while the interpreter ends
    except InputError as error:
        time.sleep(hold_back)
        fail(str(error))
    except OSError as error:
        time.sleep(hold_back)
        fail(told(error), RETRYABLE if is_passing(error) else BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    """Print ``error: message`` as one line on stderr and leave with ``code``."""
    print("error: " + one_line(message), file=sys.stderr)
    sys.exit(code)


def add_answer(parser: argparse.ArgumentParser, *, figures: bool = True) -> None:
    """``--quiet``, and of a command that has ``figures`` ``--json``: what ``answer`` obeys."""
    if figures:
        parser.add_argument("--json", action="store_true", help="print the figures as JSON, and nothing else")
    parser.add_argument("--quiet", action="store_true", help="print errors only, and what --json asks for")


@contextmanager
def answer(flags: argparse.Namespace, *, survive: bool = False) -> Iterator[Callable[[Any], None]]:
    """Around what a command does. Yields ``give(figures)``: a tree, printed as JSON where --json asks for it.

    Words printed inside are for people: with --json or --quiet they go nowhere, with --quiet progress too.
    ``survive``: the command is for the files that it writes, and goes on where words cannot be written.
    """
    as_json, quiet = getattr(flags, "json", False), getattr(flags, "quiet", False)
    given: list[Any] = []
    with ExitStack() as stack:
        if survive:
            stack.enter_context(output.guarded(survive=True))
        if as_json or quiet:
            stack.enter_context(redirect_stdout(io.StringIO()))
        if quiet:
            stack.enter_context(redirect_stderr(io.StringIO()))
        yield given.append
    for tree in given if as_json else ():
        print(json_text(tree, indent=1, default=str, sort_keys=True))


def json_text(tree: Any, **settings: Any) -> str:
    """``tree`` as standard JSON, whatever figures are in it (``finite``); ``settings`` are json.dumps's."""
    return json.dumps(finite(tree), allow_nan=False, **settings)


def finite(tree: Any) -> Any:
    """The same with null for what JSON has not: nan and infinity."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


RUN_HELP = "run folder of diffcore/train.py"


def add_run(parser: argparse.ArgumentParser, what: str = RUN_HELP) -> None:
    """The run as the first argument, and as ``--run``; ``given_run`` gives it."""
    parser.add_argument("run", nargs="?", type=Path, help=what)
    parser.add_argument("--run", type=Path, dest="run_flag", metavar="RUN", help="the same, as a flag")


def given_run(flags: argparse.Namespace) -> Path:
    """The run of ``add_run``. InputError where it is missing, or given twice."""
    if (flags.run is None) == (flags.run_flag is None):
        raise InputError("the run is missing: give its folder" if flags.run is None else "give the run once")
    run: Path = flags.run or flags.run_flag
    return run


@contextmanager
def progress_bar(doing: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with rate and time left on a terminal; in a log one line per minute with both.

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
                left = round((shown - start) * max(total - done, 0) / done) if total and done else None
                words = "" if left is None else f", {timedelta(seconds=left)} left"
                line.say(f"{doing}: {done:,}{of} images, {rate(done)}{words}", error=True)

        yield tell
        return
    from diffbase.tables import progress

    with progress() as bar:
        task = bar.add_task(line.printable(doing), total=None, words="")

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, words=rate(done))

        yield show
