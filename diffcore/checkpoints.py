"""python -m diffcore.checkpoints RUN [--keep STEP ...] [--release STEP ...]

The checkpoints of a run, a line each: step, size, what it was written by, and whether its files are as they
were written. ``--keep`` marks one that must never be removed, ``--release`` takes the mark away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffcore import checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(prog="python -m diffcore.checkpoints", description="The checkpoints of a run.")
    parser.add_argument("run", type=Path, help="run folder of diffcore/train.py")
    for name, what in {"keep": "never remove this one", "release": "let it be removed again"}.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=[], metavar="STEP", help=what)
    arguments = parser.parse_args(argv)
    run = arguments.run
    if not checkpoint.folder_of(run).is_dir():
        raise InputError(f"{run}: no checkpoints there; give the run folder of diffcore/train.py")
    there = {checkpoint.step_of(folder): folder for folder in checkpoint.complete(run)}
    allowed = ", ".join(map(str, there)) or "none"
    for step in (*arguments.keep, *arguments.release):
        if step not in there:
            raise InputError(f"{run}: no complete checkpoint of step {step}; allowed: {allowed}")
    for step in arguments.keep:
        (there[step] / checkpoint.KEEP).touch(mode=0o600)
    for step in arguments.release:
        (there[step] / checkpoint.KEEP).unlink(missing_ok=True)
    for folder in sorted(checkpoint.folder_of(run).glob("step-*")):
        print(line(run, folder))


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


if __name__ == "__main__":
    cli.run(main)
