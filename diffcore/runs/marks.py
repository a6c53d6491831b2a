"""The checkpoints of a run, listed, and marked as never to be removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffbase.cli import InputError
from diffbase.trust import file_mode
from diffcore.runs import checkpoint
from diffcore.runs.figures import spent_words
from diffcore.runs.stored.record import read_state


def mark(run: Path, keep: Sequence[int] = (), release: Sequence[int] = ()) -> None:
    """Mark the checkpoints of these steps, or take their mark away. InputError where there is none."""
    if not checkpoint.folder_of(run).is_dir():
        raise InputError(f"{run}: no checkpoints there; give the run folder of diffcore/train.py")
    there = {checkpoint.step_of(folder): folder for folder in checkpoint.complete(run)}
    allowed = ", ".join(map(str, there)) or "none"
    for step in (*keep, *release):
        if step not in there:
            raise InputError(f"{run}: no complete checkpoint of step {step}; allowed: {allowed}")
    for step in keep:
        (there[step] / checkpoint.KEEP).touch(mode=file_mode(there[step]))
    for step in release:
        (there[step] / checkpoint.KEEP).unlink(missing_ok=True)


@dataclass(frozen=True)
class Listed:
    """A checkpoint as a list of them shows it."""

    name: str
    damaged: str | None
    """What is wrong with it; then nothing else is known."""
    bytes: int = 0
    ranks: int = 0
    zero: int = 0
    precision: str = ""
    spent: dict[str, float] = field(default_factory=dict)
    """What the run had cost by then: images, flops, cpu_seconds; empty in older ones."""
    kept: bool = False
    """Marked as never to be removed."""
    best: dict[str, Any] | None = None
    """``metric`` and ``value`` that make it the best one."""

    def line(self) -> str:
        """The same as one line."""
        if self.damaged is not None:
            return f"{self.name}  damaged: {self.damaged}"
        marks = ["kept"] * self.kept
        if self.best is not None:
            value = self.best["value"]
            marks.append(f"best {self.best['metric'] or ''}" + (f" {value:.4g}" if value is not None else ""))
        by = f"{self.ranks} ranks, ZeRO-{self.zero}, {self.precision}"
        marks = [words, *marks] if (words := spent_words(self.spent)) else marks
        return "  ".join([self.name, f"{self.bytes / 2**20:,.1f} MiB", by, *marks])


def listed(run: Path) -> list[Listed]:
    """The run's checkpoints, oldest first; reads all of their files."""
    try:
        best = checkpoint.best(run)
    except InputError as error:
        return [*_all(run, None), Listed("best.json", str(error))]
    return _all(run, best)


def _all(run: Path, best: tuple[Path, dict[str, Any]] | None) -> list[Listed]:
    found = []
    for folder in checkpoint.folders(run):
        try:
            found.append(_listed(folder, best))
        except (InputError, OSError) as error:  # one never hides the others
            found.append(Listed(folder.name, str(error)))
    return found


def _listed(folder: Path, best: tuple[Path, dict[str, Any]] | None) -> Listed:
    if (problem := checkpoint.check(folder)) is not None:
        return Listed(folder.name, problem)
    size = sum(path.stat().st_size for path in folder.iterdir())
    state = read_state(folder)
    said = best[1] if best is not None and best[0] == folder else None
    return Listed(
        folder.name, None, size, state.world, state.zero, state.precision,
        spent=dict(state.spent), kept=(folder / checkpoint.KEEP).exists(),
        best=None if said is None else {name: said.get(name) for name in ("metric", "value")},
    )  # fmt: skip
