"""Whether a run fits the profile's GPUs, before it waits in a queue for them: what the memory plan says."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffbase.line import say
from diffcore.config.tree import Config
from launch.ask.card import card_of
from launch.ask.spec import JobSpec

PATIENCE = 300  # seconds; planning takes some five, most of it to load torch
DOES_NOT_FIT = "does not fit"


SIZES = {"data", "model", "batch", "engine", "ema", "optimizer", "guards"}
"""Sections of the config on which memory depends."""


def check(configs: Sequence[Config], spec: JobSpec) -> None:
    """InputError if a rank's plan is above what the profile's GPUs have; no check where it does not say it.

    ``configs``: of a sweep's points; those that differ in the learning rate are planned once. Planned for the
    fewest nodes that the run may go on with, whose ranks hold the most; in a process of its own, because
    submitting loads no torch. Where no plan can be made, a line says so, and nothing more happens.
    """
    gpus = spec.cluster.gpus
    card = None if spec.cluster.is_local else card_of(spec.cluster)
    if card is None or not spec.gpus_per_node:
        return
    said = f"{card.name} (gpus.card" if gpus.card else f"{gpus.memory_gb:g} GB (gpus.memory_gb"
    unlike: dict[str, Config] = {}
    for config in configs:
        size = config.model_dump(mode="json", include=SIZES, exclude={"optimizer": {"lr"}})
        unlike.setdefault(json.dumps(size, sort_keys=True), config)
    world = spec.nodes_min * spec.tasks_per_node
    for config in unlike.values():
        code, line = plan(config, world, card.name)
        if code and line.startswith(DOES_NOT_FIT):
            whose = f"{world} GPUs of {said} of {spec.cluster.name})"
            raise InputError(f"{whose}: {line}; --force submits it all the same")
        if code:
            say(f"memory plan: {line}; not checked", error=True)


def plan(config: Config, world: int, card: str) -> tuple[int, str]:
    """Exit code and last line of the memory plan of one rank of ``world``, on such cards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(config.to_yaml())
        command = [sys.executable, "-m", "diffcore.memory", "plan", "--config", str(path), "--check"]
        size = ["--world", str(world), "--gpu", card]
        # fmt: off
        try:
            done = subprocess.run(
                [*command, *size], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            return 1, f"took more than {PATIENCE} s"
        # fmt: on
    lines = (done.stdout + done.stderr).strip().splitlines() or ["no answer"]
    return done.returncode, lines[-1].removeprefix("error: ")
