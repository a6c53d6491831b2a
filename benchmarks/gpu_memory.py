"""python benchmarks/gpu_memory.py [--out docs/gpu-memory] [--seconds 540] [--rehearse]

On a GPU, within ten minutes: predicted against measured peaks for the cells of a table, the sum closed
against NVML with every part outside torch's allocator measured as a difference of NVML readings, and the
overhead of following a step. Writes JSON, the report of the last cell, and a calibration for
diffcore/memory/calibrations (alone: diffcore measure --calibrate).

Each cell and each difference is a process of its own, so that none inherits another's memory; the same
command measures what is missing. ``--rehearse`` runs the same program on the CPU with small networks: there
is no context, and the total is the resident set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from memory_trace import overhead

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

from diffbase.cli import InputError  # noqa: E402
from diffbase.files import write_json  # noqa: E402
from diffcore.memory.calibration import file_of  # noqa: E402
from diffcore.memory.measure.calibrate import differences, tree_of  # noqa: E402

MIB = 2**20
AVATAR, DDPM, DIFFUSERS = (
    f"configs/{name}.yaml" for name in ("avatar-adamw", "ddpm-cifar10", "diffusers-32")
)
CELLS: list[tuple[str, str]] = [
    (AVATAR, "--zero 0 --precision fp32 --micro-batch 128"),
    (AVATAR, "--zero 0 --precision fp32 --micro-batch 128 --checkpointing full"),
    (AVATAR, "--zero 1 --precision bf16 --micro-batch 128"),
    (AVATAR, "--zero 0 --precision bf16 --micro-batch 128"),
    (AVATAR, "--zero 2 --precision bf16 --micro-batch 64 --checkpointing selective"),
    (AVATAR, "--zero 3 --precision bf16 --micro-batch 64"),
    (AVATAR, "--zero 2 --precision bf16 --micro-batch 64 --offload optimizer"),
    (AVATAR, "--zero 1 --precision bf16 --micro-batch 128 --engine.channels_last true"),
    (DDPM, "--zero 1 --precision bf16 --micro-batch 64"),
    (DDPM, "--zero 0 --precision fp32 --micro-batch 32"),
    (DIFFUSERS, "--zero 1 --precision bf16 --micro-batch 16"),
    (DIFFUSERS, "--zero 2 --precision bf16 --micro-batch 16 --checkpointing full"),
]
SMALL = [
    ("configs/demo-adamw.yaml", "--zero 0 --micro-batch 4"),
    ("configs/demo-adamw.yaml", "--zero 2 --micro-batch 4 --checkpointing full"),
    ("configs/demo-adamw.yaml", "--zero 1 --micro-batch 4 --engine.channels_last true"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("docs/gpu-memory"))
    parser.add_argument("--seconds", type=float, default=540.0, help="after which no further cell is begun")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with small networks")
    given = parser.parse_args()
    import torch

    if not given.rehearse and not torch.cuda.is_available():
        raise SystemExit("no GPU here: --rehearse runs the program on the CPU")
    began, out = time.monotonic(), given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    written = out / "gpu-memory.json"
    before = json.loads(written.read_text()) if written.exists() else {}
    outside = None if given.rehearse else before.get("outside") or outside_torch()
    result: dict[str, Any] = {
        "schema": "diffcore.gpu-memory/1",
        "outside": outside,
        "cells": before.get("cells", []),
        "failed": [],
        "rehearsal": given.rehearse,
    }
    done = {(row["config"], row["flags"]) for row in result["cells"]}

    def save() -> None:
        result["seconds"] = round(time.monotonic() - began)
        written.write_text(json.dumps(result, indent=1) + "\n")

    if outside:
        found = {name: size // MIB if isinstance(size, int) else size for name, size in outside.items()}
        print(f"outside torch's allocator, MiB: {found}")
    save()
    for config, flags in SMALL if given.rehearse else CELLS:
        if (config, flags) in done:
            continue
        if time.monotonic() - began > given.seconds:
            result["failed"].append({"config": config, "flags": flags, "failed": "left out: no time"})
            continue
        row = cell(config, flags, out, outside)
        result["failed" if "failed" in row else "cells"].append(row)
        print(row_line(row), flush=True)
        save()
    if rows := result["cells"]:
        result["worst_peak_error"] = max(abs(row["error"]) for row in rows)
        result["worst_residual"] = max(abs(row["residual"]) for row in rows)
        print(
            f"worst error of a peak {result['worst_peak_error']:.2%}, worst residual "
            f"{result['worst_residual']:.2%}"
        )
    if time.monotonic() - began < given.seconds:
        cost = overhead(
            "demo-adamw.yaml" if given.rehearse else "avatar-adamw.yaml", 4 if given.rehearse else 128
        )
        result["overhead"] = cost
        print(f"memory.trace costs {cost['ratio']:.2%} of a run")
    save()
    if outside:
        tree = tree_of(outside, "benchmarks/gpu_memory.py")
        write_json(out / file_of(tree), tree, sort_keys=True)
        print(f"for diffcore/memory/calibrations: {out / file_of(tree)}")
    sys.exit(bool(result["failed"] or (outside is None and not given.rehearse)))


def outside_torch() -> dict[str, Any] | None:
    """What the process holds beside torch's allocator; None if it could not be taken."""
    try:
        return differences()
    except InputError as error:
        print(f"no differences: {error}")
        return None


def cell(config: str, flags: str, out: Path, outside: dict[str, Any] | None) -> dict[str, Any]:
    """One cell: measured in its own process, with the plan that is made beside it.

    Measured is what torch's allocator was asked for, workspaces and all; on the CPU what was followed.
    """
    command = [sys.executable, "-m", "diffcore.memory", "measure", "--config", config, "--out", str(out)]
    done = subprocess.run([*command, *flags.split()], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        return {"config": config, "flags": flags, "failed": failure(done)}
    anatomy = json.loads((out / "anatomy.json").read_text())
    if not anatomy["planned"]:
        return {"config": config, "flags": flags, "failed": " ".join(anatomy["advice"])}
    planned, measured = anatomy["planned"][0], anatomy["measured"][0]
    followed = max(moment["allocated"] for moment in measured["moments"])
    counted = [moment["counted"]["requested"] for moment in measured["moments"] if "counted" in moment]
    workspaces = sum(row["bytes"] for row in planned["closure"] if row["name"] == "library workspaces")
    if outside:
        workspaces = outside["workspaces"]
    peak, real = max(moment["allocated"] for moment in planned["moments"]), max(counted, default=followed)
    reserved = [max(moment["reserved"] for moment in rank["moments"]) for rank in (planned, measured)]
    total = measured["total"]["bytes"]
    explained = sum(row["bytes"] for row in measured["closure"] if not row["name"].startswith("residual"))
    if outside:  # as measured here, not as assumed
        assumed = sum(row["bytes"] for row in measured["closure"] if row["name"] in ("CUDA context", "NCCL"))
        explained += sum(outside[name] for name in ("context", "cublas", "cudnn", "nccl")) - assumed
    return {
        "config": config,
        "flags": flags,
        "planned_peak": peak,
        "planned_workspaces": workspaces,
        "measured_peak": real,
        "followed_peak": followed,
        "error": (peak + workspaces) / real - 1,
        "planned_reserved": reserved[0],
        "measured_reserved": reserved[1],
        "total": total,
        "residual": (total - explained) / total,
    }


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """The end of what a process said, or its exit code: one that the kernel kills says nothing."""
    return done.stderr[-2000:].strip() or f"ended with {done.returncode}"


def row_line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['config']:28} {row['flags']:66} failed: {row['failed'].splitlines()[-1]}"
    figures = [f"{row[name] / MIB:10,.1f}" for name in ("planned_peak", "measured_peak", "total")]
    return (
        f"{row['config']:28} {row['flags']:66} planned {figures[0]} measured {figures[1]} "
        f"{row['error']:+.2%}  total {figures[2]} residual {row['residual']:+.2%}"
    )


if __name__ == "__main__":
    main()
