"""A timed all-reduce on this machine: one process for each GPU, or two on the CPU, over loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

from diffbase.files import REPOSITORY
from diffbase.machine.nvml import count_gpus
from diffbase.machine.ports import any_free
from launch.doctor.finding import Finding, bad, ok
from launch.supervise.child import die_with_parent

NAME = "all-reduce"
COMMAND = (sys.executable, "-m", "launch.supervise.allreduce")


def all_reduce(seconds: float, command: Sequence[str] = COMMAND) -> Iterator[Finding]:
    """GB/s of one all-reduce; ``seconds`` is what it may take, with the start of its processes."""
    gpus = count_gpus()
    world = gpus or 2
    until = time.monotonic() + seconds
    with TemporaryDirectory(prefix="diffcore-doctor-") as folder, TemporaryFile() as said:
        out = Path(folder) / "speed.json"
        arguments = [*command, "--out", str(out), "--seconds", str(seconds)]
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            port = any_free()
            ranks += [_start(arguments, rank, world, port, said) for rank in range(world)]
            codes = _wait(ranks, until)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        if any(code != 0 for code in codes):
            said.seek(0)
            yield bad(NAME, f"{_plural(world)}: {_why(codes, said.read(), seconds)}", _todo(gpus))
            return
        result = json.loads(out.read_text())
    backend = str(result["backend"])
    if world == 1:
        yield ok(NAME, f"1 process with {backend} works; a bandwidth takes two GPUs")
    else:
        yield ok(NAME, f"{_plural(world)} with {backend}: {float(result['gbps']):.3g} GB/s")


def _start(
    arguments: Sequence[str], rank: int, world: int, port: int, said: IO[bytes]
) -> subprocess.Popen[bytes]:
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    # Inside torchrun its variables would have the ranks wait for its store.
    env = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    return subprocess.Popen(
        arguments, env=env | place, cwd=REPOSITORY, stdout=said, stderr=said, preexec_fn=die_with_parent
    )


def _wait(ranks: Sequence[subprocess.Popen[bytes]], until: float) -> list[int | None]:
    """Exit codes; None of one that had not ended in time, or when another one had failed."""
    while True:
        codes = [rank.poll() for rank in ranks]
        if None not in codes or any(codes) or time.monotonic() >= until:
            return codes
        time.sleep(0.02)


def _why(codes: Sequence[int | None], said: bytes, seconds: float) -> str:
    """The last line that the ranks printed, and how the first one that failed ended."""
    failed = [code for code in codes if code]
    if not failed:
        return f"no result within {seconds:g} s"
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    return f"exit code {failed[0]}" + (f" ({lines[-1].strip()})" if lines else "")


def _todo(gpus: int) -> str:
    if gpus:
        return "see GPUs, shared memory and communication above; with NCCL_DEBUG=INFO a training says more"
    return "see torch build and communication above; a firewall must let this machine talk to itself"


def _plural(world: int) -> str:
    return f"{world} process{'es' * (world > 1)}"
