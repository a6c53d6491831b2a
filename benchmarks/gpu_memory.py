"""python benchmarks/gpu_memory.py [--out docs/gpu-memory] [--rehearse]

On a GPU, within ten minutes: predicted against measured peaks for the cells of a table, the sum closed
against NVML with every part outside torch's allocator measured as a difference of NVML readings, and the
overhead of following a step. Prints an entry for diffcore/memory/calibration.py and writes JSON and the
report of the last cell.

Each cell and each difference is a process of its own, so that none inherits another's memory. ``--rehearse``
runs the same program on the CPU with small networks: there is no context, and the total is the resident set.
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

MIB = 2**20
LIMIT = 540.0
"""Seconds after which no further cell is begun."""
AVATAR, DDPM, DIFFUSERS = (f"configs/{name}.yaml" for name in ("avatar", "ddpm-cifar10", "diffusers-32"))
CELLS: list[tuple[str, str]] = [
    (AVATAR, "--zero 0 --dtype fp32 --micro-batch 128"),
    (AVATAR, "--zero 0 --dtype fp32 --micro-batch 128 --checkpointing full"),
    (AVATAR, "--zero 1 --dtype bf16 --micro-batch 128"),
    (AVATAR, "--zero 0 --dtype bf16 --micro-batch 128"),
    (AVATAR, "--zero 2 --dtype bf16 --micro-batch 64 --checkpointing selective"),
    (AVATAR, "--zero 3 --dtype bf16 --micro-batch 64"),
    (AVATAR, "--zero 2 --dtype bf16 --micro-batch 64 --offload optimizer"),
    (DDPM, "--zero 1 --dtype bf16 --micro-batch 64"),
    (DDPM, "--zero 0 --dtype fp32 --micro-batch 32"),
    (DIFFUSERS, "--zero 1 --dtype bf16 --micro-batch 16"),
    (DIFFUSERS, "--zero 2 --dtype bf16 --micro-batch 16 --checkpointing full"),
]
SMALL = [
    ("configs/demo.yaml", "--zero 0 --micro-batch 4"),
    ("configs/demo.yaml", "--zero 2 --micro-batch 4 --checkpointing full"),
]
DIFFERENCES = """
import os, sys, json, torch, pynvml
pynvml.nvmlInit()
uuid = os.environ.get("CUDA_VISIBLE_DEVICES", "")
properties = torch.cuda.get_device_properties(0)  # asks the driver, makes no context
handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("MIG-") else f"GPU-{properties.uuid}")
def used():
    torch.cuda.synchronize() if torch.cuda.is_initialized() else None
    reserved = torch.cuda.memory_reserved() if torch.cuda.is_initialized() else 0
    return pynvml.nvmlDeviceGetMemoryInfo(handle).used - reserved
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
readings = [("nothing", used())]
torch.zeros(1, device="cuda"); readings.append(("context", used()))
inside = torch.cuda.memory_allocated()
a = torch.randn(64, 64, device="cuda")
(a @ a).sum().item()
readings.append(("cublas", used()))
workspaces = torch.cuda.memory_allocated() - inside - a.untyped_storage().nbytes()
c = torch.nn.Conv2d(16, 16, 3, device="cuda")
c(torch.randn(2, 16, 32, 32, device="cuda")).sum().backward()
readings.append(("cudnn", used()))
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29577", RANK="0", WORLD_SIZE="1")
torch.distributed.init_process_group("nccl"); torch.distributed.all_reduce(a)
readings.append(("nccl", used()))
pairs = zip(readings, readings[1:])
steps = {name: after - before for (_, before), (name, after) in pairs}
name = pynvml.nvmlDeviceGetName(handle)
name = name if isinstance(name, str) else name.decode()
print(json.dumps({"gpu": name, "workspaces": workspaces, **steps}))
torch.distributed.destroy_process_group()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("docs/gpu-memory"))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with small networks")
    given = parser.parse_args()
    import torch

    if not given.rehearse and not torch.cuda.is_available():
        raise SystemExit("no GPU here: --rehearse runs the program on the CPU")
    began = time.monotonic()
    outside = None if given.rehearse else differences()
    if outside:
        found = {name: size if name == "gpu" else size // MIB for name, size in outside.items()}
        print(f"outside torch's allocator, MiB: {found}")
    rows = []
    for config, flags in SMALL if given.rehearse else CELLS:
        if time.monotonic() - began > LIMIT:
            print(f"left out, no time: {config} {flags}")
            continue
        rows.append(cell(config, flags, given.out, outside))
        print(row_line(rows[-1]), flush=True)
    result = {
        "schema": "diffcore.gpu-memory/1",
        "outside": outside,
        "overhead": overhead("demo.yaml" if given.rehearse else "avatar.yaml", 4 if given.rehearse else 128),
        "cells": rows,
        "worst_peak_error": max(abs(r["error"]) for r in rows),
        "worst_residual": max(abs(r["residual"]) for r in rows),
        "seconds": round(time.monotonic() - began),
        "rehearsal": given.rehearse,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gpu-memory.json").write_text(json.dumps(result, indent=1) + "\n")
    worst = (result["worst_peak_error"], result["worst_residual"])
    print(f"worst error of a peak {worst[0]:.2%}, worst residual {worst[1]:.2%}")
    print(f"memory.trace costs {result['overhead']['ratio']:.2%} of a run; {result['seconds']} s in all")
    if outside:
        print(entry(outside))


def differences() -> dict[str, Any]:
    """NVML's readings around the context, cuBLAS, cuDNN and NCCL, less what torch's allocator holds."""
    done = subprocess.run([sys.executable, "-c", DIFFERENCES], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cell(config: str, flags: str, out: Path, outside: dict[str, Any] | None) -> dict[str, Any]:
    """One cell: measured in its own process, with the plan that is made beside it."""
    command = [sys.executable, "-m", "diffcore.memory", "measure", "--config", config, "--out", str(out)]
    done = subprocess.run([*command, *flags.split()], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{config} {flags}: {done.stderr[-2000:]}")
    anatomy = json.loads((out / "anatomy.json").read_text())
    planned, measured = anatomy["planned"][0], anatomy["measured"][0]
    peaks = [max(moment["allocated"] for moment in rank["moments"]) for rank in (planned, measured)]
    reserved = [max(moment["reserved"] for moment in rank["moments"]) for rank in (planned, measured)]
    total = measured["total"]["bytes"]
    explained = sum(row["bytes"] for row in measured["closure"] if not row["name"].startswith("residual"))
    if outside:  # the context and libraries as they were measured here, not as they are assumed
        assumed = sum(row["bytes"] for row in measured["closure"] if row["name"] in ("CUDA context", "NCCL"))
        explained += sum(outside[name] for name in ("context", "cublas", "cudnn", "nccl")) - assumed
    return {
        "config": config,
        "flags": flags,
        "planned_peak": peaks[0],
        "measured_peak": peaks[1],
        "error": peaks[0] / peaks[1] - 1,
        "planned_reserved": reserved[0],
        "measured_reserved": reserved[1],
        "total": total,
        "residual": (total - explained) / total,
    }


def row_line(row: dict[str, Any]) -> str:
    figures = [f"{row[name] / MIB:10,.1f}" for name in ("planned_peak", "measured_peak", "total")]
    return (
        f"{row['config']:28} {row['flags']:66} planned {figures[0]} measured {figures[1]} "
        f"{row['error']:+.2%}  total {figures[2]} residual {row['residual']:+.2%}"
    )


def entry(outside: dict[str, Any]) -> str:
    context = outside["context"] + outside["cublas"] + outside["cudnn"]
    return (
        f"for diffcore/memory/calibration.py:\n    {outside['gpu']!r}: Calibration({context}, "
        f"{outside['workspaces']}, {outside['nccl']}, 'benchmarks/gpu_memory.py', measured=True),"
    )


if __name__ == "__main__":
    main()
