"""python -m diffcore.summary RUN

What a run has to show: its numbers in a table, and where the pictures, the memory report and TensorBoard
are. Reads the run folder only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffbase import cli
from diffbase.cli import InputError


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(prog="python -m diffcore.summary", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="run folder of diffcore/train.py")
    run: Path = parser.parse_args(argv).run
    if not (run / "metrics.jsonl").exists():
        raise InputError(f"{run}: not a run folder (no metrics.jsonl)")

    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Run {run}")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in numbers(run).items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    grid = run / "samples" / "asked.png"
    grids = [grid] if grid.exists() else sorted((run / "samples").glob("ema-*.png"))
    print(f"sample grid    {grids[-1] if grids else 'none yet'}")
    print(f"memory report  {run / 'memory.txt' if (run / 'memory.txt').exists() else 'none yet'}")
    print(f"tensorboard    {_tensorboard()} --logdir {run / 'tensorboard'}")


def numbers(run: Path) -> dict[str, str]:
    """The figures of a run folder by name, as text; what was not measured is left out."""
    text = (run / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # the last may be torn
    training = [line for line in lines if "train/loss" in line]
    if not training:
        raise InputError(f"{run}: no step was logged yet")
    last = training[-1]
    rates = sorted(line["train/images_per_second"] for line in training)
    result = {
        "steps": f"{last['step']:,}",
        "images trained on": f"{last['train/samples']:,}",
        "loss, first and last line": f"{training[0]['train/loss']:.4f}, {last['train/loss']:.4f}",
        "images a second, median": f"{rates[len(rates) // 2]:.1f}",
    }
    memory = _read(run / "anatomy.json")
    if memory:
        rank = memory["measured"][0]
        peak = max(rank["moments"], key=lambda moment: moment["allocated"])
        result["parameters"] = f"{rank['parameters']:,}"
        result["tensors of rank 0 at its peak"] = f"{peak['allocated'] / 2**20:,.0f} MiB"
        result["of it activations"] = f"{peak['bytes']['activations'] / 2**20:,.0f} MiB"
    colors = _read(run / "colors.json")
    for name, row in (colors or {}).get("agreement", {}).items():
        result[f"{name} as asked, {row['samples']} samples"] = f"{row['asked']:.1%}"
        result[f"{name}, control: real images"] = f"{row['real_images']:.1%}"
        result[f"{name}, control: shuffled wishes"] = f"{row['shuffled_wishes']:.1%}"
    return result


def _tensorboard() -> str:
    """The command as this interpreter's environment has it, whether or not that is activated."""
    command = Path(sys.executable).with_name("tensorboard")
    if not command.exists():
        return "tensorboard"
    return str(command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    cli.run(main)
