"""python benchmarks/memory_truth.py [--cells ci|table|full] [--json FILE] [--seconds N]

The planned memory of a training step beside what real DeepSpeed allocates: over gloo with 1, 2 and 4
processes, and over torch's ``fake`` process group for 8, 64 and 1024 ranks in one process. Prints every cell
and the worst one of each figure; ends with 1 where a state is unequal or an error above 1 %.

The planned side is diffcore.memory.planning.plan. The measured side (memory_observed.py) knows nothing of it:
torch's profiler reports each allocation and free of the CPU allocator from before the network is built, and
the states are the storages of the engine's own tensors. Errors are of the whole, (planned - measured) /
measured, and after forward of the activations alone too.

``ci`` is pairwise cells of small networks: every two settings that can meet do in one of them. ``table`` has
those, pairwise cells with 4 processes and 1024 ranks too, and 600 more drawn from the whole product; ``full``
the seeds' networks at their own size; ``any`` other people's networks (memory_any.py). With --seconds no
further cell is begun after so many; the same command with --json goes on where it stopped. On a machine that
is busy gloo's own thread may free a tensor, which the
profiler then takes for alive: --again 0.001 --settle 0.03 measures such cells once more. What a CPU kernel
allocates and frees inside itself is counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import memory_any
import memory_cells
from memory_cells import MODELS, Cell, config_of

OBSERVED = Path(__file__).with_name("memory_observed.py")
ALONE = "activations alone"
FIGURES = ("after step", "activations", ALONE, "backward peak", "step peak")
PORTION = 12
"""Cells that one group of processes measures, at most."""
FAILED: list[str] = []
"""Groups of which a process failed."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", choices=["ci", "table", "full", "any"], default="ci")
    parser.add_argument("--only", default="", help="only cells whose line has this text")
    parser.add_argument("--json", type=Path, help="every figure; what is in it is not measured again")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so many")
    parser.add_argument("--plan-again", action="store_true", help="plan anew what --json has measured")
    parser.add_argument("--again", type=float, metavar="SHARE", help="measure anew what is off by more")
    parser.add_argument("--settle", type=float, default=0.003, help="seconds to wait after a collective")
    parser.add_argument("--groups", type=int, default=2, help="process groups at a time")
    given = parser.parse_args()
    if given.cells == "any":
        words = ["--only", given.only, *(["--json", str(given.json)] if given.json else [])]
        memory_any.main([*words, "--seconds", str(given.seconds)])
        return
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}

    began = time.monotonic()
    cells = [cell for cell in getattr(memory_cells, given.cells)() if given.only in str(cell)]
    rows: dict[Cell, dict[str, Any]] = {}
    if given.json and given.json.exists():
        there = {Cell(**row["cell"]): row for row in json.loads(given.json.read_text())["rows"]}
        rows = {cell: there[cell] for cell in cells if cell in there}
        if given.plan_again:
            rows = {cell: row | {"planned": plan_of(cell)} for cell, row in rows.items()}
        if given.again is not None:
            rows = {
                cell: row
                for cell, row in rows.items()
                if max(abs(error(row, name)) for name in FIGURES) <= given.again
            }
    before = len(rows)
    left = [cell for cell in cells if cell not in rows]
    for cell, measured in measure(left, began + given.seconds, given.settle, given.groups):
        rows[cell] = {"cell": asdict(cell), "planned": plan_of(cell), "measured": measured}
        print(line(cell, rows[cell]), flush=True)
        if given.json:
            save(given.json, list(rows.values()))
    print(*FAILED, sep="\n", file=sys.stderr)
    if not rows:
        raise SystemExit("no cell was measured")
    took = time.monotonic() - began
    print(f"\n{len(rows)} of {len(cells)} cells, {len(rows) - before} of them now in {took:.0f} s")
    truth = save(given.json, list(rows.values()))
    show(truth, rows)
    sys.exit(bool(FAILED or truth["unequal"]) or any(value > 0.01 for value in truth["worst"].values()))


def error(row: dict[str, Any], name: str) -> float:
    """Of the whole; ALONE is what is wrong after forward, as a share of the activations and nothing else."""
    if name == ALONE:
        wrong = row["planned"]["activations"] - row["measured"]["activations"]
        return float(wrong / row["planned"]["saved"])
    return float(row["planned"][name] / row["measured"][name] - 1)


def save(path: Path | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole truth, written to ``path`` if there is one."""
    truth = {
        "worst": {name: max(abs(error(row, name)) for row in rows) for name in FIGURES},
        "unequal": sum(row["planned"]["states"] != row["measured"]["states"] for row in rows),
        "rows": rows,
    }
    if path:
        path.write_text(json.dumps(truth, indent=1))
    return truth


def line(cell: Cell, row: dict[str, Any]) -> str:
    same = "=" if row["planned"]["states"] == row["measured"]["states"] else "DIFFER"
    sizes = row["measured"] | {ALONE: row["planned"]["saved"]}
    figures = "  ".join(f"{name} {sizes[name] / 2**20:8.2f} {error(row, name):+8.3%}" for name in FIGURES)
    return f"{cell}  {figures}  states {same}"


def show(truth: dict[str, Any], rows: dict[Cell, dict[str, Any]]) -> None:
    """The worst cell of each figure, over all and over each kind of process group."""
    for backend in ("gloo", "fake"):
        for world in sorted({cell.world for cell in rows if cell.backend == backend}):
            part = [row for cell, row in rows.items() if (cell.backend, cell.world) == (backend, world)]
            worst = ", ".join(f"{name} {max(abs(error(r, name)) for r in part):.3%}" for name in FIGURES)
            print(f"{backend}, {world} ranks, {len(part)} cells: {worst}")
    print("the worst of each figure:")
    for name in FIGURES:
        cell = max(rows, key=lambda cell: abs(error(rows[cell], name)))
        print(f"{name:14} {error(rows[cell], name):+8.4%}   {cell}")
    measured = {cell: row["measured"] for cell, row in rows.items()}
    shares = {cell: m["with scratch"] / m["backward peak"] - 1 for cell, m in measured.items()}
    cell = max(shares, key=lambda cell: shares[cell])
    print(f"scratch of the CPU's kernels, not planned: up to {shares[cell]:.2%}   {cell}")
    unequal = [str(cell) for cell, r in rows.items() if r["planned"]["states"] != r["measured"]["states"]]
    print(f"states unequal to the byte: {truth['unequal']}", *unequal, sep="\n")


_TRACES: dict[Any, Any] = {}


def plan_of(cell: Cell) -> dict[str, Any]:
    from diffcore.memory.planning.plan import Data, plan, trace_quietly

    config = config_of(cell)
    data = Data(Data.of(config).schema, MODELS[cell.model][2])
    autocast = config.engine.arithmetic.autocast
    key = (cell.model, cell.precision, autocast, cell.zero == 3, cell.checkpointing, cell.micro)
    if key not in _TRACES:
        _TRACES[key] = trace_quietly(config, data, cell.micro, "cpu")
    # NCCL makes no copies that gloo makes, and neither does a fake group.
    device = "cpu" if cell.backend == "gloo" else "cuda"
    planned = plan(config, cell.world, cell.rank, device, data=data, traced=_TRACES[key])
    before, forward, backward, step, after = planned.moments
    states = {name: after.bytes[name] for name in ("parameters", "masters", "optimizer")}
    return {
        "after step": after.allocated,
        "activations": forward.allocated,
        "saved": forward.bytes["activations"],
        "backward peak": max(before.allocated, backward.allocated),
        "step peak": step.allocated,
        "states": states | {"gradients": planned.gradients},
    }


def measure(
    cells: list[Cell], until: float, settle: float, at_a_time: int
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each cell measured by real DeepSpeed; cells of one process group share their processes.

    ``at_a_time`` groups, the ones of several processes first.
    """
    groups: dict[tuple[str, int, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.backend, cell.world, cell.rank].append(cell)
    portions = [group[i : i + PORTION] for group in groups.values() for i in range(0, len(group), PORTION)]
    portions.sort(key=lambda portion: -portion[0].world * (portion[0].backend == "gloo"))
    with ThreadPoolExecutor(at_a_time) as pool:
        for future in as_completed([pool.submit(_measured, portion, until, settle) for portion in portions]):
            yield from future.result()


def _measured(cells: list[Cell], until: float, settle: float) -> list[tuple[Cell, dict[str, Any]]]:
    backend, world = cells[0].backend, cells[0].world
    if time.monotonic() > until:
        return []
    with tempfile.TemporaryDirectory() as folder:
        job, out = Path(folder) / "job.json", Path(folder) / "out.jsonl"
        tree = {"cells": [asdict(c) for c in cells], "out": str(out), "settle": settle}
        job.write_text(json.dumps(tree | {"seconds": until - time.monotonic()}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = []
        for rank in range(world) if backend == "gloo" else [cells[0].rank]:
            env = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank if backend == "gloo" else 0),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            command = [sys.executable, str(OBSERVED), str(job)]
            processes.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL))
        codes = [process.wait() for process in processes]
        results = [json.loads(text) for text in out.read_text().splitlines()] if out.exists() else []
        if any(codes):
            FAILED.append(f"{backend}, {world} ranks: ended with {codes} after {len(results)} cells")
        return [(cells[result["number"]], result["measured"]) for result in results]


if __name__ == "__main__":
    main()
