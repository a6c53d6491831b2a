"""Out of memory: what was asked for, where the memory is at that moment, and the settings that would fit."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from diffcore.config import Config
from diffcore.ema import Ema
from diffcore.engine import Engine
from diffcore.memory import advise, report
from diffcore.memory.nvml import usage
from diffcore.memory.states import CATEGORIES
from diffcore.memory.trace import storage_bytes

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate: CUDA has a type for it, the CPU's allocator only its text."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def asked_for(error: BaseException) -> int | None:
    """Bytes that the allocation wanted, as the error says."""
    found = _ASKED.search(str(error))
    return round(float(found[1]) * UNITS[found[2]]) if found else None


def explain(config: Config, engine: Engine, ema: Ema | None, error: BaseException) -> str:
    """One line for the user; the report of this moment is written into the run folder and named in it."""
    device, world = engine.world.device, engine.world.size
    if device.type == "cuda":
        room = int(torch.cuda.mem_get_info(device)[1])
    else:
        room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    line = advise.explain_oom(config, world, asked_for(error), room)
    try:
        path = write(config, engine, ema, line)
    except Exception as second:  # the memory is full: the line alone has to do
        return f"{line} (no report: {type(second).__name__}: {second})"
    return f"{line}. Report: {path}"


def write(config: Config, engine: Engine, ema: Ema | None, line: str) -> Path:
    """The report of the states as they are now."""
    sizes = dict.fromkeys(CATEGORIES, 0)
    seen: set[int] = set()
    for category, tensors in (engine.memory() | {"ema": ema.shards if ema else []}).items():
        for address, size in storage_bytes(tensors).items():
            sizes[category] += 0 if address in seen else size
            seen.add(address)
    device = engine.world.device
    held = sum(sizes.values())
    reserved = torch.cuda.memory_reserved(device) if device.type == "cuda" else None
    total = usage(device)
    rows = [{"name": n, "bytes": s, "source": "storages"} for n, s in sizes.items() if s]
    entry: dict[str, Any] = {
        "rank": engine.world.rank,
        "device": total.device,
        "parameters": engine.parameters,
        "micro_batch": engine.micro,
        "moments": [
            {
                "name": "out of memory",
                "bytes": sizes,
                "host": 0,
                "allocated": held,
                "reserved": reserved or held,
            }
        ],
        "layers": [],
        "timeline": [],
        "closure": rows + total.rows(held, reserved, held),
        "total": {"bytes": total.used, "source": total.source},
        "notes": ["the states alone: activations were freed on the way out of the error", *total.notes],
    }
    anatomy = {
        "schema": report.SCHEMA,
        "unit": "bytes",
        "run": report.about(config, engine.world.size, engine.parameters),
        "planned": [],
        "measured": [entry],
        "advice": [line],
    }
    return report.save(config.run / f"out-of-memory-rank{engine.world.rank}", anatomy)
