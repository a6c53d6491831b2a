"""torch's profiler over some steps of a run, written as a file that Perfetto opens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from diffbase.files import sync_folder
from diffcore.config.tree import Config
from diffcore.engine.ranks import World


class StepProfile:
    """The steps ``train.profile`` of rank 0, whose trace has its waits for the others too.

    The profiler costs time and some hundred kilobytes a step while it runs; other steps are not touched.
    """

    def __init__(self, config: Config, world: World) -> None:
        self._steps = config.train.profile if world.main else None
        self._folder = config.run / "profile"
        self._cuda = world.device.type == "cuda"
        self._running: profile | None = None
        self._last = 0

    def before(self, step: int) -> None:
        """Step ``step`` begins (1 is a run's first)."""
        if self._steps and step == self._steps[0]:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
            self._running = profile(activities=activities)
            self._running.start()
            self._first = step

    def after(self, step: int) -> Path | None:
        """Step ``step`` has ended. After the last one: the file. OSError where it cannot be written."""
        self._last = step
        return self.close() if self._steps and step == self._steps[1] else None

    def close(self) -> Path | None:
        """The file of the steps so far, if a profile is running. OSError where it cannot be written."""
        if self._running is None:
            return None
        running, self._running = self._running, None
        if self._cuda:
            torch.cuda.synchronize()  # what was begun in these steps belongs to them
        running.stop()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"steps-{self._first}-{max(self._last, self._first)}.json.gz"
        part = path.with_name(f".{path.name}")  # its suffix has torch compress it
        running.export_chrome_trace(str(part))
        part.chmod(0o600)
        part.rename(path)
        sync_folder(self._folder)
        return path
