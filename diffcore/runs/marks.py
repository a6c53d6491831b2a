"""The checkpoints of a run, listed, and marked as never to be removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from diffbase.cli import InputError
from diffcore.runs import checkpoint


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
        (there[step] / checkpoint.KEEP).touch(mode=0o600)
    for step in release:
        (there[step] / checkpoint.KEEP).unlink(missing_ok=True)


def lines(run: Path) -> Iterator[str]:
    """A line per checkpoint, oldest first."""
    for folder in sorted(checkpoint.folder_of(run).glob("step-*")):
        yield line(run, folder)


def line(run: Path, folder: Path) -> str:
    """What there is to say of a checkpoint; reads all of its files."""
    problem = checkpoint.check(folder)
    if problem is not None:
        return f"{folder.name}  damaged: {problem}"
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    state, best = checkpoint.read_state(folder), checkpoint.best(run)
    marks = ["kept"] if (folder / checkpoint.KEEP).exists() else []
    if best is not None and best[0] == folder:
        marks.append(f"best {best[1]['metric']} {best[1]['value']:.4g}")
    by = f"{state.world} ranks, ZeRO-{state.zero}, {state.precision}"
    return "  ".join([folder.name, f"{size:,.1f} MiB", by, *marks])
