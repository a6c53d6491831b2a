"""Before a step is trained: can the nodes do it? Under half a minute, and a failing node is named.

Every node looks at its disks and devices; then all ranks time an all-reduce (probe/). A node that fails
alone is left out of this user's next submissions to the cluster for a while (launch/job/registry.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from diffbase.cli import InputError
from diffbase.exits import BAD_INPUT, RETRYABLE
from diffbase.explain import validated
from diffbase.files import REPOSITORY
from diffbase.formats import json_file
from diffbase.line import say
from diffbase.machine.nvml import device_health
from launch.ask.spec import JobSpec
from launch.job import registry
from launch.job.code import by_name
from launch.supervise.environment import Layout
from launch.supervise.meeting import Exit, Record

PROBE = "probe"
SPEED = "speed-0.json"
"""What rank 0 writes of it."""
PASSING = "data: "
"""What begins a problem that may pass: no mistake of the user's, also where every node has it."""
DATA_SECONDS = 60.0
"""That a node has to read the index and a little of the shards: well below the wait for all supervisors."""


class Speed(BaseModel):
    """What the all-reduce measured, GB/s: over all ranks, and of each pair of nodes "a b"."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    gbps: float = Field(ge=0)
    pairs: dict[str, float] = Field(max_length=1_000_000)


def local(spec: JobSpec, run: Path, scratch: Path | None, config: Path) -> list[str]:
    """What is wrong with this node. ``config``: of the run, whose data it reads."""
    checks = spec.cluster.preflight
    if checks.mode == "off":
        return []
    problems = [room(run, checks.run_gb, "run folder")]
    if scratch is not None and (spec.cluster.scratch or scratch.exists()):
        problems.append(room(scratch, checks.scratch_gb, "scratch"))
    if spec.gpus_per_node and checks.devices:
        health = device_health(spec.gpus_per_node)
        problems += health.problems
        for note in health.notes:
            say(f"launch: note: {note}")
    if checks.data and config.exists():
        problems.append(data(config, spec.fingerprint))
    return [problem for problem in problems if problem]


def data(config: Path, fingerprint: str | None, seconds: float = DATA_SECONDS) -> str | None:
    """Whether this node reads the run's shards, and they are those that were submitted; None if so."""
    module = "launch.supervise.probe.check_data"
    command = [sys.executable, *by_name(module, REPOSITORY), "--config", str(config)]
    if fingerprint:
        command += ["--fingerprint", fingerprint]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()  # not waited for: a read that hangs ends with its disk
            return f"{PASSING}not read within {seconds:.0f} s"
        said.seek(0)
        line = (said.read().strip().splitlines() or [""])[-1]
    if code in (BAD_INPUT, RETRYABLE):
        return (PASSING if code == RETRYABLE else "") + line.removeprefix("error: ")
    if code:
        say(f"launch: note: the data could not be looked at (exit code {code}): {line}")
    return None


def room(folder: Path, gigabytes: float, what: str) -> str | None:
    """Whether a file can be written and so many GB are free; None if so."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # of a name that nobody can have taken before
            file.write(b"\0" * 65536)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return f"{what} {folder}: {error.strerror or error}"
    if free < gigabytes:
        return f"{what} {folder}: {free:.1f} GB free, {gigabytes:g} wanted"
    return None


def order(meeting: Record, seconds: float) -> dict[str, Any]:
    """What a rank's process is told of the timed all-reduce, which ends it after ``seconds``."""
    return {"out": str(meeting.folder / SPEED), "seconds": seconds}


def judge(
    meeting: Record, exits: Mapping[int, Exit], where: Layout, spec: JobSpec
) -> tuple[str | None, dict[str, str]]:
    """(what was wrong with the all-reduce or None, the nodes to blame and why)."""
    failed = {e.node: f"all-reduce: exit code {e.code}" for e in exits.values() if e.code and not e.ours}
    if failed:
        lines = "; ".join(f"{node}: {why}" for node, why in sorted(failed.items()))
        # Peers of a node that fails fail too: only one that is alone with it is to blame.
        return lines, failed if len(failed) == 1 < len(set(where.nodes)) else {}
    path = meeting.folder / SPEED
    try:
        found = validated(Speed, json_file.read(path, most=16 << 20), str(path))
    except (OSError, InputError) as error:
        return f"all-reduce: no result ({error})", {}
    floor, speed = spec.cluster.preflight.floor_gbps, found.gbps
    say(f"launch: all-reduce over {where.world} ranks: {speed:.3g} GB/s")
    if speed >= floor:
        return None, {}
    return f"all-reduce {speed:.3g} GB/s, {floor:g} wanted", slow_nodes(found.pairs, floor)


def slow_nodes(pairs: Mapping[str, float], floor: float) -> dict[str, str]:
    """Nodes whose every pair is below the floor while another pair is not. ``pairs``: "a b" -> GB/s."""
    of: dict[str, list[float]] = {}
    for names, speed in pairs.items():
        for node in names.split():
            of.setdefault(node, []).append(speed)
    if all(speed < floor for speed in pairs.values()):
        return {}
    return {
        node: f"all-reduce at most {max(speeds):.3g} GB/s with its neighbours, {floor:g} wanted"
        for node, speeds in of.items()
        if max(speeds) < floor
    }


def exclude(spec: JobSpec, bad: Mapping[str, str]) -> str:
    """Leave these nodes out of this user's next submissions; returns why it could not be, or ""."""
    return registry.exclude(spec.cluster.name, bad, spec.cluster.preflight.exclude_hours)
