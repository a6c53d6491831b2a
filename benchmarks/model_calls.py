"""python benchmarks/model_calls.py RUN [--calls 50,20,10,6] [--samplers ddim,dpm++:logsnr,...] [--json FILE]

How few calls of the network does a guided sample need? Draws the same conditions with the same noise at every
number of calls, with every sampler and its levels (``NAME`` or ``NAME:SPACING``), guided everywhere and in
``--intervals`` only, and has the run's judge read them. The reference, of which every cell's difference in
fidelity is taken sample by sample, is ``--reference`` at the most calls, guided everywhere.

``calls`` are a sampler's evaluations of x_0, counted; ``passes`` images through the network a sample: two a
call where guidance acts. ``cpu_seconds`` are this process's, all threads, of the drawing alone, a sample.
Heun has two evaluations a step, so half the steps; several levels that fall on one are one call. Prints one
JSON object; with --json it is written anew after every cell.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

import torch  # noqa: E402
from torch import nn  # noqa: E402

from diffbase.cli import InputError  # noqa: E402
from diffbase.files import write_json  # noqa: E402
from diffcore.engine.ranks import World, one_device  # noqa: E402
from diffcore.evaluation.quality import distances, drawing  # noqa: E402
from diffcore.evaluation.studies import guidance_sweep  # noqa: E402
from diffcore.evaluation.studies.cells import Cell, Table  # noqa: E402
from diffcore.runs.sampling import changed_sampling  # noqa: E402

SAMPLERS = "ddim,dpm++,dpm++:logsnr,dpm++:rho,dpm++sde,unipc,unipc:time,heun"
INTERVALS = "0:1,0:0.8,0.2:1,0.2:0.8"
ALONE = World(0, 1, 0, one_device())


class Counter:
    """Forward passes of a network, and images in them."""

    def __init__(self, network: nn.Module) -> None:
        self.calls = self.images = 0
        network.register_forward_hook(self._count)

    def _count(self, network: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.calls += 1
        self.images += len(inputs[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder, checkpoint or export")
    parser.add_argument("--samples", type=int, default=1000, help="images a cell (default 1000)")
    parser.add_argument("--calls", default="50,20,10,6")
    parser.add_argument("--samplers", default=SAMPLERS)
    parser.add_argument("--intervals", default=INTERVALS, help="of t / (T - 1), LOW:HIGH")
    parser.add_argument("--guidance", type=float, help="scale (default: the run's)")
    parser.add_argument("--reference", default="ddim")
    parser.add_argument("--judge", type=Path, help="the judge's folder (default: the run's)")
    parser.add_argument("--data", help="the run's shards, where they have moved")
    parser.add_argument("--seed", type=int, default=1, help="of labels and noise")
    parser.add_argument("--json", type=Path, help="file for the figures")
    a = parser.parse_args()
    try:
        record = measured(a)
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(record, indent=1))


def measured(a: argparse.Namespace) -> dict[str, Any]:
    """The figures of every cell."""
    table = guidance_sweep.table_of(a.run, a.judge, a.data, ALONE, a.samples, 1, a.seed)
    counter = Counter(table.model.network)
    counts = sorted((int(count) for count in a.calls.split(",")), reverse=True)
    intervals = [[float(edge) for edge in one.split(":")] for one in a.intervals.split(",")]
    first = settings(a.reference, counts[0], [0.0, 1.0], a.guidance)
    wanted = [first] + [
        one
        for count in counts
        for sampler in a.samplers.split(",")
        for interval in intervals
        if (one := settings(sampler, count, interval, a.guidance)) != first
    ]
    record: dict[str, Any] = {
        "run": a.run.name, "step": table.model.step, "samples": len(table.labels_NA), "seed": a.seed,
        "threads": torch.get_num_threads(), "cells": [],
    }  # fmt: skip
    # Not timed: the first forward passes allocate what the others find.
    some = changed_sampling(table.model.config, {**first, "steps": 1})
    drawing.draw(table.model, table.labels_NA, some, a.seed, ALONE)
    reference: Cell | None = None
    for one in wanted:
        cell, figures = drawn(table, counter, one)
        reference = reference or cell
        difference = table.difference(cell, reference)
        record["cells"].append(figures | {"difference": finite(difference.as_dict())})
        print(line(record["cells"][-1]), file=sys.stderr)
        if a.json is not None:
            write_json(a.json, record)
    return record


def settings(sampler: str, calls: int, interval: list[float], guidance: float | None) -> dict[str, Any]:
    """Of ``sampling``: a sampler, ``NAME`` or ``NAME:SPACING``, that may call the network ``calls`` times."""
    name, _, spacing = sampler.partition(":")
    steps = (calls + 1) // 2 if name == "heun" else calls
    found = {"sampler": name, "steps": steps, "spacing": spacing or "auto", "guidance_interval": interval}
    return found if guidance is None else found | {"guidance": guidance}


def drawn(table: Table, counter: Counter, changed: dict[str, Any]) -> tuple[Cell, dict[str, Any]]:
    """One cell, drawn and judged, and its figures."""
    sampling = changed_sampling(table.model.config, changed)
    counter.calls = counter.images = 0
    began, cpu = time.monotonic(), time.process_time()
    images = drawing.draw(table.model, table.labels_NA, sampling, table.seed, ALONE)
    cpu, seconds = time.process_time() - cpu, time.monotonic() - began
    reading = table.judge.read(images)
    scores = table.judge.score(images, table.labels_NA, reading)
    frechet = distances.frechet(table.real_NF, reading.features_NF)
    cell = Cell(sampling, images, scores, frechet, math.nan, seconds)
    batches = -(-len(images) // drawing.BATCH)
    figures = {
        **{name: getattr(sampling, name) for name in ("sampler", "spacing", "steps", "guidance")},
        "guidance_interval": list(sampling.guidance_interval),
        "calls": counter.calls / batches,
        "passes": counter.images / len(images),
        "cpu_seconds": cpu / len(images),
        "fidelity": finite(scores.mean.as_dict()),
        "attributes": {name: finite(share.as_dict()) for name, share in scores.shares.items()},
        "frechet": frechet,
    }
    return cell, figures


def finite(figures: dict[str, Any]) -> dict[str, Any]:
    """None for nan: JSON has none."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in figures.items()
    }


def line(cell: dict[str, Any]) -> str:
    """A cell's figures in words."""
    fidelity, low, high = (cell["fidelity"][name] for name in ("mean", "low", "high"))
    of = "refused" if fidelity is None else f"{fidelity:.1%} ({low:.1%} to {high:.1%})"
    interval = ":".join(f"{edge:g}" for edge in cell["guidance_interval"])
    return (
        f"{cell['sampler']:8} {cell['spacing']:6} {cell['calls']:4g} calls, {cell['passes']:5.1f} passes, "
        f"interval {interval:7}: fidelity {of}, Frechet {cell['frechet']:.1f}, "
        f"{cell['cpu_seconds']:.4f} CPU seconds a sample"
    )


if __name__ == "__main__":
    main()
