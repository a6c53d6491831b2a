"""python -m diffcore.evaluation.collapse [RUN] [--out docs/guidance.md]

Does a fast sampler stay faithful under guidance? Trains configs/experiments/guidance.yaml (data and judge are
made on the way), then compares 1000-step DDPM with DPM-Solver++ and DDIM at several guidance scales: the same
1,000 wishes and noise in every cell, with 95 % intervals, and each fast sampler's difference from DDPM sample
by sample. Writes the table as Markdown. What is drawn is kept in RUN/collapse: the same command goes on where
it was interrupted.

Two processes share the work (on GPUs: one each):  torchrun --nproc-per-node 2 -m diffcore.evaluation.collapse
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbase import cli
from diffcore.config import REPOSITORY
from diffcore.evaluation import command

if TYPE_CHECKING:
    from diffcore.evaluation.cells import Cell, Table

CONFIG = REPOSITORY / "configs" / "experiments" / "guidance.yaml"
SCALES = "1,2,4,6,10"
RIVALS: tuple[dict[str, Any], ...] = (
    {"sampler": "dpm++sde", "steps": 20},
    {"sampler": "dpm++", "steps": 20},
    {"sampler": "ddim", "steps": 20},
)
WITHIN = 0.02


def main(argv: Sequence[str] | None = None) -> None:
    parser = command.parser("diffcore.evaluation.collapse", __doc__)
    parser.add_argument("run", type=Path, nargs="?", help="trained already (default: one is made)")
    command.add_samples(parser, 1000, "images a cell")
    parser.add_argument("--scales", default=SCALES, help=f"guidance scales (default {SCALES})")
    parser.add_argument("--out", type=Path, default=Path("guidance.md"), help="the table (guidance.md)")
    arguments = parser.parse_args(argv)
    command.check(arguments)

    from diffcore import configure, engine
    from diffcore.evaluation import draws, experiments
    from diffcore.evaluation.sweep import numbers, table_of

    scales = numbers("--scales", arguments.scales)
    world = draws.start()
    say: Callable[[str], None] = (lambda line: print(line, flush=True)) if world.main else lambda line: None
    try:
        run = arguments.run
        if run is None:
            config = configure.load(CONFIG)
            run = config.run
            if world.main:
                data = config.data.path
                assert isinstance(data, Path)
                experiments.prepare(data, 16, say)
                say(f"training {run}")
                experiments.run("diffcore/train.py", "--config", CONFIG)
            draws.gather(None, world)
        table = table_of(run, None, world, arguments.samples, 1, arguments.seed, run / "collapse")
        cells = []
        for scale in scales:
            reference = table.cell(say, sampler="ddpm", guidance=scale)
            rivals = [table.cell(say, guidance=scale, **settings) for settings in RIVALS]
            cells.append((reference, rivals))
            if world.main:  # after every scale: the table takes a while
                arguments.out.write_text(page(table, cells))
                figures = [cell.figures() for reference, rivals in cells for cell in (reference, *rivals)]
                arguments.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
        say(f"table: {arguments.out}")
        draws.gather(None, world)
    finally:
        engine.stop()


def page(table: Table, cells: Sequence[tuple[Cell, list[Cell]]]) -> str:
    """The Markdown: fidelity of every cell, and the differences from DDPM."""
    count, names = len(table.labels_NA), ", ".join(table.judge.readable)
    headings = ["1000-step DDPM" if table.model.schedule.timesteps == 1000 else "DDPM, all steps"]
    headings += [_heading(cell) for cell in cells[0][1]]
    lines = [
        "# Fast samplers under guidance",
        "",
        f"Mean fidelity over {names} of {count:,} samples a cell, with its 95 % interval; the same wishes "
        f"and noise in every cell. The judge itself is right on {_ceiling(table):.1%} of held-out images. "
        f"Network: {sum(p.numel() for p in table.model.network.parameters()):,} parameters, step "
        f"{table.model.step:,}, images of {table.model.size} x {table.model.size}; seed {table.seed}. "
        "Made by",
        "",
        "```\npython -m diffcore.evaluation.collapse\n```",
        "",
        "| guidance | " + " | ".join(headings) + " |",
        "|---" * (1 + len(headings)) + "|",
    ]
    for reference, rivals in cells:
        row = [
            f"{reference.sampling.guidance:g}",
            *(_interval(cell.scores.mean) for cell in (reference, *rivals)),
        ]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "Difference from DDPM in points, sample by sample, with its 95 % interval:",
        "",
        "| guidance | " + " | ".join(headings[1:]) + " |",
        "|---" * len(headings) + "|",
    ]
    for reference, rivals in cells:
        row = [f"{reference.sampling.guidance:g}"]
        for cell in rivals:
            d = table.difference(cell, reference)
            row.append(f"{100 * d.mean:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})")
        lines.append("| " + " | ".join(row) + " |")
    changes = [table.difference(rivals[0], reference).mean for reference, rivals in cells]
    verdict = "loses at most" if min(changes) >= -WITHIN else "loses MORE than"
    lines += [
        "",
        f"{headings[1]}, {verdict} {100 * WITHIN:.0f} points against DDPM: the differences go from "
        f"{100 * min(changes):+.1f} to {100 * max(changes):+.1f} points.",
        "",
    ]
    return "\n".join(lines)


def _heading(cell: Cell) -> str:
    names = {
        "dpm++": "DPM-Solver++ 2M",
        "dpm++sde": "SDE-DPM-Solver++ 2M",
        "ddim": "DDIM",
        "heun": "Heun",
        "ddpm": "DDPM",
    }
    unclamped = "" if cell.sampling.clamp else ", x_0 not clamped"
    return f"{names[cell.sampling.sampler]}, {cell.steps} steps{unclamped}"


def _interval(mean: Any) -> str:
    return f"{100 * mean.mean:.1f} % ({100 * mean.low:.1f} to {100 * mean.high:.1f})"


def _ceiling(table: Table) -> float:
    accuracy = table.judge.accuracy
    return sum(accuracy[name]["share"] for name in table.judge.readable) / len(table.judge.readable)


if __name__ == "__main__":
    cli.run(main)
