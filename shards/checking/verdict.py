"""Whether a packed folder is sound, here or behind a URL; before that its repair, where one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from diffbase.cli import InputError, one_line
from diffbase.redaction import shown
from diffbase.system_error import is_there
from shards.checking.repair import repair
from shards.checking.verifier import index_of, problems
from shards.foreign import checker
from shards.header import FILE, check_remote
from shards.packing.untrained import untrained
from shards.sources import AS_IT_IS, Asked
from shards.table import Index


@dataclass(frozen=True)
class Verdict:
    """One line for each thing that was repaired, or not, and that is wrong; the samples of each split."""

    repaired: list[str]
    problems: list[str]
    # Of a sound folder alone:
    samples: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    skipped: int = 0  # bad images that its pack left out


def check(
    place: Path | str,
    jobs: int = 1,
    *,
    source: Path | Sequence[str] | None = None,
    asked: Asked = AS_IT_IS,
    tell: Callable[[str], None] = lambda line: None,
) -> Verdict:
    """Check the folder at ``place``, a path or a URL; ``tell`` gets each line at once.

    ``source``: what a folder here is repaired from, read as it is ``asked``. InputError where there is no
    packed folder, or no access, or ``source`` is not what was packed.
    """
    repaired: list[str] = []
    faults: list[str] = []

    def note(line: str, lines: list[str]) -> None:
        lines.append(line)
        tell(line)

    if source is None and asked != AS_IT_IS:
        raise InputError("how a source is read (--labels and the like) is only for --repair")
    url = place if isinstance(place, str) else None
    if url and source:
        raise InputError(f"--repair: {shown(place)} is an address; allowed: a folder on this machine")
    with ExitStack() as stack:
        folder = Path(place) if url is None else stack.enter_context(index_of(url))
        if not is_there(folder / FILE):
            Index.load(folder)  # tells what is missing
        if source:
            for line in repair(folder, source, asked=asked, jobs=jobs):
                note(line, repaired)
        try:
            index = Index.load(folder)
            if url:
                check_remote(index.header, folder / FILE)
            index.check()
        except InputError as error:  # the index is there, and damaged or not to be trusted
            note(one_line(str(error).replace(f"{folder}/", f"{shown(place)}/")), faults)
            return Verdict(repaired, faults)
        of_its_kind = checker.problems if index.header.is_foreign else problems
        for line in of_its_kind(folder, jobs, url):
            note(line, faults)
        if faults:
            return Verdict(repaired, faults)
        counts = {name: len(split) for name, split in index.splits.items()}
        return Verdict(repaired, [], counts, untrained(folder), index.header.skipped)
