"""Taking a checkpoint up: the newest one in which no rank finds damage, the same on all of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from diffbase.cli import InputError
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World, from_rank
from diffcore.runs import checkpoint
from diffcore.runs.stored.record import State
from diffcore.runs.tensors import DamagedError
from diffcore.training.guards.watchdog import Watchdog


class TakenUp(NamedTuple):
    """A checkpoint whose states the engine and the average have now."""

    folder: Path
    state: State


class Checkpoints:
    """Those of a run folder, for the ranks that train in it. What was found damaged once is passed over."""

    def __init__(self, run: Path, world: World, watchdog: Watchdog) -> None:
        self._run, self._world, self._watchdog = run, world, watchdog
        self._damaged: dict[str, str] = {}

    def newest(self) -> tuple[Path | None, list[str]]:
        """``checkpoint.newest`` as rank 0 finds it, on every rank. A collective.

        InputError where there are complete ones and none can be loaded: to begin anew would remove them.
        """
        run, world = self._run, self._world
        folder, skipped, refused = None, list[str](), ""
        if world.main:
            try:
                folder, skipped = checkpoint.newest(run, whole=False, damaged=self._damaged)
                if folder is None and checkpoint.complete(run):
                    refused = (
                        f"{checkpoint.folder_of(run)}: none can be loaded ({'; '.join(skipped)}); "
                        "mend one, or move the folder away to begin anew"
                    )
            except InputError as error:
                refused = str(error)
        name, skipped, refused = from_rank([folder and folder.name, skipped, refused], world)
        if refused:
            raise InputError(refused)
        return name and checkpoint.folder_of(run) / name, skipped

    def take_up(
        self, folder: Path | None, skipped: list[str], engine: Engine, ema: Ema
    ) -> tuple[TakenUp | None, list[str]]:
        """Load what ``newest`` gave, or, where a rank finds it damaged, the newest of the others; and a line
        for each one skipped. A collective. None where ``folder`` is."""
        while folder is not None:
            try:
                with self._watchdog.section("load"):
                    return TakenUp(folder, checkpoint.load(folder, engine, ema)), skipped
            except DamagedError as error:
                self._damaged[folder.name] = str(error)
            folder, skipped = self.newest()
        return None, skipped
