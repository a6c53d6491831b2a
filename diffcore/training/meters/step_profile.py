"""What torch records of some steps of a run: its profiler's trace, and the history of its allocator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from diffbase.files import sync_folder
from diffbase.trust import file_mode, make_folder
from diffcore.config.tree import Config
from diffcore.engine.ranks import World

MOST_ENTRIES = 1 << 18
"""Allocations and frees in a memory snapshot, the last ones: each has its stack, up to some kilobytes."""

End = Callable[[Callable[[], Path]], None]
"""Ends a recording and writes it into the file that its argument makes room for."""


class StepProfile:
    """The steps ``train.profile`` and ``train.memory_snapshot`` of rank 0, whose trace has its waits for the
    others too.

    The profiler costs time and some hundred kilobytes a step while it runs, the allocator's history a stack
    for every allocation; other steps are not touched.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.notes: list[str] = []
        """Lines for the log, when training begins."""
        self._recordings: list[_Recording] = []
        if not world.main:
            return
        folder, cuda = config.run / "profile", world.device.type == "cuda"
        if steps := config.train.profile:
            file, where = "steps-{}.json.gz", "https://ui.perfetto.dev or chrome://tracing"
            self._recordings.append(_Recording(steps, folder / file, where, lambda: _trace(cuda)))
        if (steps := config.train.memory_snapshot) and cuda:
            file, where = "memory-{}.pickle", "https://pytorch.org/memory_viz"
            self._recordings.append(_Recording(steps, folder / file, where, _history))
        elif steps:
            self.notes = ["train.memory_snapshot: torch keeps a history of CUDA's memory alone: no file"]

    def before(self, step: int) -> None:
        """Step ``step`` begins (1 is a run's first)."""
        for recording in self._recordings:
            recording.before(step)

    def after(self, step: int) -> Sequence[str]:
        """Step ``step`` has ended. A line for each file whose last step it was. OSError as ``close``."""
        return [line for recording in self._recordings if (line := recording.after(step))]

    def close(self) -> Sequence[str]:
        """A line for each file of the steps so far. OSError where one cannot be written."""
        return [line for recording in self._recordings if (line := recording.close())]


class _Recording:
    """From one step to another, then a file."""

    def __init__(self, steps: tuple[int, int], path: Path, where: str, begin: Callable[[], End]) -> None:
        """``path``: with {} for the steps; ``where``: what shows it."""
        self._steps, self._path, self._where, self._begin = steps, path, where, begin
        self._end: End | None = None
        self._first = self._last = 0

    def before(self, step: int) -> None:
        if step == self._steps[0]:
            self._end, self._first = self._begin(), step

    def after(self, step: int) -> str | None:
        self._last = step
        return self.close() if step == self._steps[1] else None

    def close(self) -> str | None:
        if self._end is None:
            return None
        end, self._end = self._end, None
        steps = f"{self._first}-{max(self._last, self._first)}"
        path = self._path.with_name(self._path.name.format(steps))
        part = path.with_name(f".{path.name}")  # its suffix has torch compress a trace

        def room() -> Path:
            make_folder(part.parent)
            return part

        end(room)
        part.chmod(file_mode(part.parent))
        part.rename(path)
        sync_folder(path.parent)
        return f"profile: {path} ({self._where} shows it)"


def _trace(cuda: bool) -> End:
    running = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
    running.start()

    def end(room: Callable[[], Path]) -> None:
        if cuda:
            torch.cuda.synchronize()  # what was begun in these steps belongs to them
        running.stop()
        running.export_chrome_trace(str(room()))

    return end


def _history() -> End:
    # Python's stacks alone: those of C++ take minutes to be named when the file is written.
    torch.cuda.memory._record_memory_history(stacks="python", max_entries=MOST_ENTRIES)

    def end(room: Callable[[], Path]) -> None:
        try:
            torch.cuda.memory._dump_snapshot(str(room()))
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)

    return end
