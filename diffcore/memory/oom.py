"""Out of memory: what was asked for, where the memory is at that moment, and the settings that would fit."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import resource
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diffcore.config.tree import Config
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World
from diffcore.memory import advise, report
from diffcore.memory.measure.counted import Counted
from diffcore.memory.measure.trace import storage_bytes
from diffcore.memory.measure.usage import CGROUPS, Usage, usage
from diffcore.memory.planning.plan import as_json
from diffcore.memory.planning.states import CATEGORIES

ON_THE_CPU = ("DefaultCPUAllocator", "bad_alloc", "could not create a memory", "can't allocate lock")
"""What torch's allocator, the C++ library, oneDNN and Python's threads say."""
NO_CODE = "could not create a primitive"
"""The end of what oneDNN says when there is no room for a kernel's code; before "descriptor" it means another
thing."""
ON_CUDA = ("CUDA error: out of memory", "_ALLOC_FAILED", "Failed to CUDA calloc", "Failed to CUDA malloc")
"""What the driver says outside torch's allocator, then cuBLAS and cuDNN, then NCCL."""
ACTIVATIONS = {
    "cpu": "activations: all that was free again once the failed step had been dropped",
    "cuda": "activations: all that torch's allocator had handed out besides the states",
}
"""What is meant by them in the report of that moment."""
SCRATCH = 0.2
"""Share of the room left to what is not planned on the CPU: its kernels' own buffers, malloc's fragments."""
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch's CUDA allocator has a type for it, all others only their text."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and (any(sign in str(error) for sign in ON_THE_CPU + ON_CUDA) or str(error).endswith(NO_CODE))
    )


def asked_for(error: BaseException) -> int | None:
    """Bytes that the allocation wanted, as the error says."""
    found = _ASKED.search(str(error))
    return round(float(found[1]) * UNITS[found[2]]) if found else None


def explain(
    config: Config, world: World, engine: Engine | None, ema: Ema | None, error: BaseException
) -> str:
    """One line for the user; the report of this moment is written into the run folder and named in it.

    ``engine`` and ``ema`` are None where the memory was full before they were there.
    """
    sizes, total, counted = _states(engine, ema), usage(world.device), Counted.of(world.device)
    held = sum(sizes.values())
    if counted:
        sizes["activations"] = max(0, counted.requested - held)
        _drop(error)
        room, device = int(torch.cuda.mem_get_info(world.device)[1]), "cuda"
    else:
        _drop(error)
        now = usage(world.device).used
        sizes["activations"] = max(0, total.used - now)
        room, device = int((1 - SCRATCH) * host_room(held, sizes["activations"], now)), "cpu"
    line, planner = advise.explain_oom(
        config, world.size, asked_for(error), room, device=device, outside=total.outside
    )
    try:
        path = _write(config, world, engine, sizes, total, counted, line, planner)
    except Exception as second:  # the memory is full: the line alone has to do
        return f"{line} (no report: {type(second).__name__}: {second})"
    return f"{line}. Report: {path}"


def _drop(error: BaseException) -> None:
    """Let go of the step that failed: the error's frames hold its tensors, and plans need memory too."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what is freed
        ctypes.CDLL(None).malloc_trim(0)


def host_room(held: int, freed: int, resident: int) -> int:
    """Bytes that tensors of this process could have on the CPU: the tightest limit (the machine's memory, the
    cgroup's, ulimit -v) less what it holds beside its tensors. ``held`` of ``resident`` bytes are tensors;
    with ``freed`` bytes more the memory was full.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    limits = [os.sysconf("SC_PHYS_PAGES") * page - (resident - held)]
    for file in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max", or no such file
            limits.append(int(Path(file).read_text()) - (resident - held))
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * page
        # Addresses that malloc keeps look taken, so that what was there before is the better figure.
        limits.append(max(addresses - (mapped - held), held + freed))
    return max(0, min(limits))


def _states(engine: Engine | None, ema: Ema | None) -> dict[str, int]:
    """Bytes of the states as they are now, by category."""
    sizes = dict.fromkeys(CATEGORIES, 0)
    seen: set[int] = set()
    memory = (engine.memory() if engine else {}) | {"ema": ema.memory if ema else []}
    for category, tensors in memory.items():
        for address, size in storage_bytes(tensors).items():
            sizes[category] += 0 if address in seen else size
            seen.add(address)
    return sizes


def _write(
    config: Config,
    world: World,
    engine: Engine | None,
    sizes: dict[str, int],
    total: Usage,
    counted: Counted | None,
    line: str,
    planner: advise.Planner | None,
) -> Path:
    """The report of that moment, with what is planned for the step."""
    held = sum(sizes.values())
    how = dict.fromkeys(CATEGORIES, "storages") | {"activations": "difference"}
    rows = [{"name": n, "bytes": s, "source": how[n]} for n, s in sizes.items() if s]
    planned = [as_json(planner.plan(config, world.size))] if planner else []
    parameters = engine.parameters if engine else planned[0]["parameters"] if planned else 0
    entry: dict[str, Any] = {
        "rank": world.rank,
        "device": total.device,
        **({"capacity": asdict(total.room)} if total.room else {}),
        "parameters": parameters,
        "micro_batch": config.batch.split(world.size)[0],
        "moments": [
            {
                "name": "out of memory",
                "bytes": sizes,
                "host": 0,
                "allocated": held,
                "reserved": counted.reserved if counted else held,
            }
        ],
        "layers": [],
        "timeline": [],
        "closure": rows + total.rows(held, held, counted),
        "total": {"bytes": total.used, "source": total.source},
        "notes": [ACTIVATIONS[world.device.type], *total.notes],
    }
    anatomy = {
        "schema": report.SCHEMA,
        "unit": "bytes",
        "run": report.about(config, world.size, parameters),
        "planned": planned,
        "measured": [entry],
        "advice": [line],
    }
    return report.save(config.run / f"out-of-memory-rank{world.rank}", anatomy)
