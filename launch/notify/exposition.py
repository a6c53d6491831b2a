"""A run's figures in Prometheus' text format, and the file that they are read from.

https://prometheus.io/docs/instrumenting/exposition_formats/: a line of HELP and of TYPE, then a sample. So
little of it that prometheus_client would be a dependency for an f-string.
"""

from __future__ import annotations

import math
from pathlib import Path

from diffbase.cli import InputError
from diffbase.files import renamed
from diffbase.formats import jsonl
from diffbase.system_error import told
from launch.follow.glance import glance
from launch.follow.run import Run
from launch.scheduler.query import Known

MEMORY = "memory/process_mib"


def exposition(run: Path, name: str = "") -> str:
    """What is known of the run, labelled with its folder, name and job; "" before it has a ledger."""
    try:
        read = Run.read(run)
        at = glance(read, Known())  # Slurm is not asked
    except (InputError, OSError):
        return ""
    labels = ",".join(
        f'{key}="{escape(value)}"' for key, value in [("run", at.run), ("name", name), ("job", at.job or "")]
    )
    memory = [
        line[MEMORY]
        for line in jsonl.tail(run / "metrics.jsonl")
        if isinstance(line.get(MEMORY), int | float)
    ]
    figures: list[tuple[str, str, float | None]] = [
        ("step", "Steps that are done.", at.step),
        ("steps", "Steps that the run is to take.", at.steps),
        ("steps_per_second", "Median over the last logged lines.", at.rate),
        ("goodput_ratio", "Share of the time on the nodes that trained.", at.goodput),
        ("memory_bytes", "Of rank 0's device, by its process.", memory[-1] * 2**20 if memory else None),
        ("checkpoint_step", "Step of the newest complete checkpoint.", at.checkpoint),
        ("failed_attempts", "Attempts that failed.", at.failed),
        ("heartbeat_timestamp_seconds", "When training was heard of last.", at.heard),
    ]
    lines = []
    for key, words, value in figures:
        if value is not None and math.isfinite(value):
            metric = f"diffcore_{key}"
            lines += [
                f"# HELP {metric} {words}",
                f"# TYPE {metric} gauge",
                f"{metric}{{{labels}}} {float(value)!r}",
            ]
    return "".join(f"{line}\n" for line in lines)


def escape(value: str) -> str:
    """A label's value."""
    text = value.encode(errors="replace").decode()  # a file of UTF-8
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def replace(path: Path, text: str) -> str | None:
    """Make it the whole of ``path``, for the collector's user to read; what went wrong, in words."""
    try:
        with renamed(path) as temporary:
            temporary.write_text(text)
            temporary.chmod(0o644)
    except OSError as error:
        return told(error)
    return None
