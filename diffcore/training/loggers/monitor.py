"""Watching a run: metrics.jsonl, TensorBoard, other loggers, and a progress bar or plain lines in a log.

Only rank 0 writes; on the other ranks every call does nothing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffbase.cli import one_line
from diffbase.files import set_aside, write_atomic
from diffbase.formats import jsonl
from diffbase.line import printable
from diffbase.system_error import NO_FILE
from diffcore.runs import metrics
from diffcore.training.loggers.tracker import Tracker


def _without_tensorboards(error: threading.ExceptHookArgs) -> None:
    """Its thread's error comes again at the next figure, where it is told in one line: no traceback here."""
    tensorboards = type(error.thread).__module__.startswith("tensorboard.")
    if not (tensorboards and issubclass(error.exc_type, OSError)):
        threading.__excepthook__(error)


class Monitor:
    """Opened at the step that the run starts or resumes from; figures of later steps are dropped, because
    they are about to be made again."""

    def __init__(
        self,
        run: Path,
        start: int,
        total: int,
        active: bool,
        board: bool = True,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        """``board``: with TensorBoard; ``trackers``: beside it, which are started here."""
        self.run, self.total, self.active, self._with_board = run, total, active, board
        self._trackers = trackers
        self._logged = start
        self._told = set[str]()
        if not active:
            return
        self._metrics = run / metrics.FILE
        self._progress = _progress(start, total) if sys.stderr.isatty() else None
        self._writer: Any = _NoBoard()
        with self._writing_board():
            self._writer = self._board(start)
        newest = self._drop_after(start)
        for tracker in trackers:
            tracker.start(newest)
        self._began, self._start = time.monotonic(), start

    def steps_since(self, step: int) -> int:
        """Steps since the last call, or since the start."""
        steps, self._logged = step - self._logged, step
        return steps

    def rewind(self, step: int) -> None:
        """The run has gone back to ``step``: figures of later steps are dropped."""
        self._logged = step
        if self.active:
            with self.writing("metrics.jsonl"):
                self._drop_after(step)
            with self._writing_board() as writer:
                writer.close()
                self._writer = self._board(step)
            for tracker in self._trackers:
                tracker.rewind()

    def _drop_after(self, step: int) -> int:
        """Leave metrics.jsonl without the lines after ``step`` and without a torn last line; the newest step
        that was there, or -1.

        With damaged lines it is set aside as it was, and told.
        """
        left_out: list[int] = []
        newest, kept = -1, list[dict[str, Any]]()
        try:
            for line in metrics.read(self.run, left_out):
                newest = max(newest, line["step"])
                if line["step"] <= step:
                    kept.append(line)
        except NO_FILE:
            kept = []
            self.say(f"{self._metrics} is no file; it is kept as {set_aside(self._metrics).name}")
        if left_out:
            aside = set_aside(self._metrics)
            self.say(f"{len(left_out)} lines of {self._metrics} cannot be read; it is kept as {aside.name}")
        write_atomic(self._metrics, jsonl.text(kept).encode())
        return newest

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Around what is written for people alone: a disk that does not take it is told of, once, and
        training goes on."""
        try:
            yield
        except OSError as error:
            self.lost(what, error)

    def lost(self, what: str, error: OSError) -> None:
        """Say once that ``what`` cannot be written."""
        if what not in self._told:
            self._told.add(what)
            self.say(one_line(f"{what} cannot be written ({error.strerror or error}); training goes on"))

    @contextmanager
    def _writing_board(self) -> Iterator[Any]:
        """TensorBoard's writer, which after a failure takes nothing more: then one that does nothing."""
        try:
            yield self._writer
        except OSError as error:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = _NoBoard()
            self.lost("tensorboard", error)

    def _board(self, start: int) -> Any:
        if not self._with_board:
            return _NoBoard()
        from torch.utils.tensorboard import SummaryWriter

        if threading.excepthook is threading.__excepthook__:  # else somebody has one of his own
            threading.excepthook = _without_tensorboards
        # From 0 too: a run that was killed before its first checkpoint begins again, and so do its figures.
        return SummaryWriter(self.run / "tensorboard", purge_step=start + 1 if start else 0)

    def text(self, tag: str, text: str) -> None:
        """A text for TensorBoard, shown as it is."""
        if self.active:
            with self._writing_board() as writer:
                writer.add_text(tag, f"```\n{text}\n```")

    def say(self, line: str) -> None:
        """One line for the reader of the log, as text: names and paths in it neither colour nor end it."""
        if not self.active:
            return
        if self._progress:
            from diffbase import tables

            tables.say(self._progress.console, line)
        else:
            print(printable(line), flush=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a step (a tag "a/b" becomes TensorBoard's group a)."""
        if not self.active:
            return
        with self.writing("metrics.jsonl"):  # before the others: by its end a later life knows what they have
            jsonl.append(self._metrics, {"step": step, **values})
        self.board(step, values)

    def board(self, step: int, values: Mapping[str, float]) -> None:
        """Figures for TensorBoard and the like alone: metrics.jsonl has one line per logged step."""
        if self.active:
            with self._writing_board() as writer:
                for tag, value in values.items():
                    writer.add_scalar(tag, value, step)
            self._track(lambda tracker: tracker.figures(step, values))

    def _track(self, give: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            give(tracker)
            if trouble := tracker.trouble():
                self.say(f"{tracker.name}: {trouble}")

    def progress(self, step: int, figures: Mapping[str, float], epoch_images: int) -> None:
        """Move the bar, or print the step's line; ``figures`` are those of ``scalars``."""
        if not self.active:
            return
        words = (
            f"epoch {figures['train/samples'] / epoch_images:.2f}  loss {figures['train/loss']:.4f}  "
            f"{figures['train/images_per_second']:.1f} images/s  {figures['memory/process_mib']:,.0f} MiB"
        )
        if self._progress:
            self._progress.update(self._progress.task_ids[0], completed=step, words=words)
            return
        done = step - self._start
        left = (time.monotonic() - self._began) / max(done, 1) * (self.total - step)
        self.say(f"step {step}/{self.total}  {words}  {_clock(left)} left")

    def image(self, tag: str, step: int, image_HWC: np.ndarray) -> None:
        """A picture [H, W, C] for TensorBoard and the like."""
        if self.active:
            with self._writing_board() as writer:
                writer.add_image(tag, image_HWC, step, dataformats="HWC")
            self._track(lambda tracker: tracker.image(tag, step, image_HWC))

    def close(self) -> None:
        """Finish the progress bar, TensorBoard's file and what else takes figures."""
        if not self.active:
            return
        if self._progress:
            self._progress.stop()
            self._progress = None
        with self._writing_board() as writer:
            writer.close()
        self._track(lambda tracker: tracker.close())


class _NoBoard:
    """In the place of TensorBoard's writer when its disk has failed."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _progress(start: int, total: int) -> Any:
    from diffbase import tables

    progress = tables.progress()
    progress.add_task("training", total=total, completed=start, words="")
    progress.start()
    return progress


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
