"""python -m diffcore.evaluation.sweep RUN [--scales 0,1,2,3,4,5,6,7,8,9] [--samplers dpm++,...]

Which guidance scale, sampler and number of steps? Draws the same conditions with the same noise at every
scale with every sampler, then with fewer and more steps. Writes into the run folder:

    sweep.png, sweep.html   the pictures, a row a scale, and fidelity against diversity
    sweep.json              every figure
    sampling.json           the recommended settings, which diffcore.sample and diffcore.evaluate then use

Recommended is, among the settings that are as faithful as the best within chance, the one nearest to real
images by the Frechet distance, and of its steps the fewest that are as faithful.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffbase import cli
from diffbase.cli import InputError
from diffcore.evaluation import command
from diffcore.evaluation.intervals import Mean
from diffcore.sample import RECOMMENDED, load_run

if TYPE_CHECKING:
    from diffcore.evaluation.cells import Cell, Table
    from diffcore.world import World

SCALES = "0,1,2,3,4,5,6,7,8,9"
STEPS = "5,10,20,50"
SHOWN = 10
MARGIN = 0.005
"""Settings whose mean fidelity is at most this below the best's count as good as it, chance or not."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = command.parser("diffcore.evaluation.sweep", __doc__)
    command.add_run(parser, 256, "images a cell")
    parser.add_argument("--scales", default=SCALES, help=f"guidance scales (default {SCALES})")
    parser.add_argument("--samplers", default="ddim,dpm++,dpm++sde,heun,ddpm", help="default: all")
    parser.add_argument("--steps", default=STEPS, help=f"tried at the best scale (default {STEPS})")
    parser.add_argument("--repeats", type=int, default=4, help="of them with the same labels (default 4)")
    arguments = parser.parse_args(argv)
    command.check(arguments)
    scales = numbers("--scales", arguments.scales)
    steps = [int(n) for n in numbers("--steps", arguments.steps)]
    samplers = arguments.samplers.split(",")
    if not 2 <= arguments.repeats <= arguments.samples:
        raise InputError(f"--repeats {arguments.repeats}: allowed: 2 to --samples")

    from diffcore import engine
    from diffcore.evaluation import draws

    world = draws.start()
    try:
        table = table_of(
            arguments.run, arguments.judge, world, arguments.samples, arguments.repeats, arguments.seed
        )
        say = print if world.main else lambda line: None
        cells = [table.cell(say, sampler=sampler, guidance=scale) for sampler in samplers for scale in scales]
        best = choose(table, cells)
        chosen, tried = best, []
        if best.sampling.sampler != "ddpm":
            tried = [
                table.cell(say, sampler=best.sampling.sampler, guidance=best.sampling.guidance, steps=n)
                for n in steps
                if n <= table.model.config.diffusion.timesteps
            ]
            chosen = fewest(table, [*tried, best])
        if world.main:
            _write(arguments.run, table, cells, tried, chosen)
        draws.gather(None, world)
    finally:
        engine.stop()


def numbers(flag: str, text: str) -> list[float]:
    """ "0,1,2" -> [0.0, 1.0, 2.0]; InputError for anything else."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} {text}: expected numbers with commas between") from None
    if any(not 0 <= value < 1e6 for value in values):
        raise InputError(f"{flag} {text}: expected numbers from 0 up")
    return values


def table_of(
    run: Path,
    judge_folder: Path | None,
    world: World,
    samples: int,
    repeats: int,
    seed: int,
    keep: Path | None = None,
) -> Table:
    """The table of a run: its network, its judge, and the judge's features of held-out images."""
    import numpy as np

    from diffcore.evaluate import judge_of
    from diffcore.evaluation.cells import Table
    from diffcore.evaluation.quality import REAL
    from shards.read import ShardReader

    model = load_run(run)
    if not model.config.model.conditional or not model.config.diffusion.label_dropout:
        raise InputError(f"{run}: guidance needs a network that learned with labels and without them")
    judge = judge_of(model, judge_folder)
    assert judge is not None  # conditional, so there are labels
    if not judge.readable:
        raise InputError("the judge reads no attribute of these images well enough to compare by")
    with ShardReader(model.config.data.path, "val", order="sequential") as reader:
        real = reader.read(np.arange(min(len(reader), REAL)))
    return Table(model, judge, judge.read(real.images).features_NF, world, samples, repeats, seed, keep)


def choose(table: Table, cells: Sequence[Cell]) -> Cell:
    """Among those as faithful as the best within chance, the one with the least Frechet distance."""
    best = max(cells, key=lambda cell: cell.scores.mean.mean)
    return min((cell for cell in cells if tied(table.difference(cell, best))), key=lambda cell: cell.frechet)


def fewest(table: Table, cells: Sequence[Cell]) -> Cell:
    """Among those as faithful as the best within chance, the one with the fewest steps."""
    best = max(cells, key=lambda cell: cell.scores.mean.mean)
    return min(
        (cell for cell in cells if tied(table.difference(cell, best))), key=lambda cell: cell.sampling.steps
    )


def tied(difference: Mean) -> bool:
    return difference.high >= 0 or difference.mean >= -MARGIN


def _write(run: Path, table: Table, cells: Sequence[Cell], tried: Sequence[Cell], chosen: Cell) -> None:
    import numpy as np

    from diffbase.files import write_atomic
    from diffcore import pictures
    from diffcore.evaluation import sweep_page

    settings = {
        "sampler": chosen.sampling.sampler,
        "steps": chosen.sampling.steps,
        "guidance": chosen.sampling.guidance,
    }
    record = {
        "step": table.model.step,
        "seed": table.seed,
        "recommended": settings,
        "scales": [cell.figures() for cell in cells],
        "steps": [cell.figures() for cell in tried],
    }
    write_atomic(run / "sweep.json", (json.dumps(record, indent=1) + "\n").encode())
    # One condition once: the first of its repeats.
    shown = np.arange(0, len(table.labels_NA), table.repeats)[:SHOWN]
    rows = [cell.images[shown] for cell in cells]
    pictures.save_png(pictures.grid(np.concatenate(rows), len(shown), least=48), run / "sweep.png")
    sweep_page.write(run / "sweep.html", run.name, table, cells, tried, chosen, shown)
    evidence = {**settings, "step": table.model.step, "fidelity": chosen.scores.mean.as_dict()}
    write_atomic(run / RECOMMENDED, (json.dumps(evidence, indent=1) + "\n").encode())
    print(f"recommended: {settings}, written to {run / RECOMMENDED}; pictures: {run / 'sweep.html'}")


if __name__ == "__main__":
    cli.run(main)
