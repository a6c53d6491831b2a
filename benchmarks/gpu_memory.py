"""python benchmarks/gpu_memory.py [--out docs/gpu-memory] [--seconds 540] [--rehearse]

On a GPU, within ten minutes: predicted against measured peaks for the cells of a table, the sum closed
against NVML with every part outside torch's allocator measured as a difference of NVML readings, and the
overhead of following a step. Prints an entry for diffcore/memory/calibration.py and writes JSON and the
report of the last cell.

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
DIFFERENCES = """
import json, os, pynvml
from diffbase.machine.nvml import handle_of, shown_devices

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
pynvml.nvmlInit()
# The order of nvidia-smi, for indices; torch is asked nothing yet, which would make the context.
os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
handle = handle_of(pynvml, shown_devices(pynvml.nvmlDeviceGetCount())[0])
readings = [("nothing", pynvml.nvmlDeviceGetMemoryInfo(handle).used)]

import torch

def read(name):
    torch.cuda.synchronize()
    readings.append((name, pynvml.nvmlDeviceGetMemoryInfo(handle).used - torch.cuda.memory_reserved()))

a = torch.zeros(1, device="cuda")
read("context")
layer, x = torch.nn.Linear(64, 64, device="cuda"), torch.randn(64, 64, device="cuda", requires_grad=True)
before = torch.cuda.memory_allocated()
y = layer(x).sum()
y.backward()
read("cublas")
made = [y, x.grad, layer.weight.grad, layer.bias.grad]
workspaces = torch.cuda.memory_allocated() - before - sum(-(-t.nbytes // 512) * 512 for t in made)
c = torch.nn.Conv2d(16, 16, 3, device="cuda")
c(torch.randn(2, 16, 32, 32, device="cuda")).sum().backward()
read("cudnn")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29577", RANK="0", WORLD_SIZE="1")
torch.distributed.init_process_group("nccl")
torch.distributed.all_reduce(a)
read("nccl")
steps = {name: after - before for (_, before), (name, after) in zip(readings, readings[1:])}
name = pynvml.nvmlDeviceGetName(handle)
name = name if isinstance(name, str) else name.decode()
print(json.dumps({"gpu": name, "cuda": torch.version.cuda, "workspaces": workspaces, **steps}))
torch.distributed.destroy_process_group()
"""


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
    outside = None if given.rehearse else before.get("outside") or differences()
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
        print(entry(outside))
    sys.exit(bool(result["failed"] or (outside is None and not given.rehearse)))


def differences() -> dict[str, Any] | None:
    """NVML's readings around the context, cuBLAS, cuDNN and NCCL, less what torch's allocator holds; None if
    they could not be taken."""
    done = subprocess.run([sys.executable, "-c", DIFFERENCES], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        print(f"no differences: {failure(done)}")
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


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


def entry(outside: dict[str, Any]) -> str:
    """For CALIBRATIONS; NCCL's share is that of a group of one rank."""
    context = outside["context"] + outside["cublas"] + outside["cudnn"]
    return (
        f"for diffcore/memory/calibration.py:\n    ({outside['gpu']!r}, {outside['cuda']!r}): Calibration("
        f"{context}, {outside['workspaces']}, {outside['nccl']}, 'benchmarks/gpu_memory.py', measured=True),"
    )


if __name__ == "__main__":
    main()
