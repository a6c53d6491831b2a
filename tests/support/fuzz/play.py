"""Feeding cases to a target, and what must hold of each.

No exception but those that tell of bad input, in one line of readable length; no case of more than HANG
seconds, none that takes more than MEMORY bytes; no file made or changed outside its folder.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from diffbase.cli import one_line
from diffbase.files import REPOSITORY
from tests.support.fuzz.mutate import mutate
from tests.support.fuzz.target import Target

HANG = 10  # seconds
MEMORY = 1 << 30  # bytes
ROOMS = tuple(f"{REPOSITORY}/{room}/" for room in ("diffbase", "shards", "diffcore", "launch"))
LONGEST = 2_100
"""Characters of an answer."""


class Hang(BaseException):
    """A case took more than HANG seconds."""


@dataclass
class Outcome:
    """What came of the cases of one target."""

    told: int = 0
    valid: int = 0
    slowest: float = 0.0
    findings: dict[str, bytes] = field(default_factory=dict)
    """What was wrong -> the smallest input that did it."""


def cases(target: Target, name: str, count: int, seed: int) -> Iterator[bytes]:
    """``count`` damaged examples; the same for the same name and seed."""
    for number in range(count):
        rng = random.Random(f"{name} {seed} {number}")
        seed_data = rng.choice(target.seeds)
        if target.mutate and rng.random() < 0.5:
            yield target.mutate(seed_data, rng)
        else:
            yield mutate(seed_data, rng, target.words)


def play(target: Target, data: Iterable[bytes]) -> Outcome:
    """Feed each case; limits hold for this process until the end."""
    outcome = Outcome()
    before = os.getcwd()  # noqa: PTH109
    with tempfile.TemporaryDirectory() as name, _limits():
        root = Path(name).resolve()
        outside = root / "outside"
        outside.mkdir()
        (outside / "x").write_text("x")
        for case in data:
            folder = root / "case"
            folder.mkdir()
            os.chdir(folder)
            start = time.perf_counter()
            try:
                told, wrong = _feed(target, case, folder)
            finally:
                os.chdir(before)
            outcome.slowest = max(outcome.slowest, time.perf_counter() - start)
            there = sorted(path.relative_to(root).as_posix() for path in root.glob("*"))
            there += [path.read_text() for path in outside.iterdir()]
            if not wrong and there != ["case", "outside", "x"]:
                wrong = f"files outside: {there}"
            if wrong:
                known = outcome.findings.get(wrong)
                outcome.findings[wrong] = case if known is None else min(known, case, key=len)
            outcome.told += bool(told)
            outcome.valid += not told and not wrong
            shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _feed(target: Target, case: bytes, folder: Path) -> tuple[bool, str]:
    """Whether bad input was told, and what was wrong."""
    faulthandler.dump_traceback_later(3 * HANG, exit=True)  # of what does not come back from C
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            target.feed(case, folder)
    except target.told as error:
        text = str(error)
        wrong = ""
        if len(one_line(text)) > LONGEST:
            wrong = f"an answer of {len(text)} characters"
        if any(not char.isprintable() for char in one_line(text)):
            wrong = f"an answer that is not printable: {text[:200]!r}"
        return True, wrong
    except (Exception, SystemExit, Hang) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/tests/support/fuzz/" not in frame.filename] or list(frames)
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        near = [frame for frame in frames if frame.filename.startswith(ROOMS)]
        if near:
            where += f" from {Path(near[-1].filename).name}:{near[-1].lineno}"
        return False, f"{type(error).__name__} at {where}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    return False, ""


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    def hang(number: int, frame: FrameType | None) -> None:
        raise Hang

    old = signal.signal(signal.SIGALRM, hang)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, old)
