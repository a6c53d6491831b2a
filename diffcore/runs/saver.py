"""Writing checkpoints beside the training; ``checkpoint`` says what they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffbase import ledger
from diffbase.cli import InputError, one_line
from diffbase.files import open_atomic, sync_folder, write_json
from diffbase.system_error import named, told
from diffbase.trust import file_mode, make_folder
from diffcore.config.tree import Config
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.exchange import Exchange
from diffcore.engine.ranks import World, receive_bytes, send_bytes, side_group
from diffcore.runs.checkpoint import SAVING, folder_at, folder_of, prune
from diffcore.runs.run_folder import code_version
from diffcore.runs.stored.record import KINDS, State, shard_name
from diffcore.runs.tensors import seal_of, write_tensors


def state_now(
    config: Config,
    data: dict[str, Any],
    step: int,
    updates: int,
    engine: Engine,
    progress: dict[str, Any],
    spent: dict[str, float],
) -> State:
    """The state of a run of ``config`` on ``data`` after ``step`` steps."""
    return State(
        step=step,
        samples=step * config.batch.size,
        updates=updates,
        identity=config.identity(),
        data=data,
        world=engine.world.size,
        zero=config.engine.zero,
        precision=config.engine.precision,
        code=code_version() if engine.world.rank == 0 else "",  # rank 0 writes it, and may have to ask git
        shapes=engine.shapes(),
        progress=progress,
        spent=spent,
        scaler=engine.scaler_state(),
    )


T = TypeVar("T")
FILL = 64 << 20
"""Bytes of a file, or more: a file system of many nodes counts opens rather than bytes."""
TRIES = 3
"""Checkpoints in a row that may fail to be written before the run ends."""


class Saver:
    """Writes checkpoints beside the training: the loop waits only for a copy of its tensors.

    One at a time: a second ``save`` waits until the first is complete. What goes wrong on any rank is told at
    once, and goes wrong on every rank: ``wait``, at the end, raises it. ``settle``, before the next one, lets
    a disk fail ``TRIES - 1`` times in a row: the run is whole, and the disk may have room again.
    """

    def __init__(
        self, run: Path, keep: int, world: World, still_ours: Callable[[], None] = lambda: None
    ) -> None:
        """``still_ours`` raises, on rank 0, where the run folder is another process's by now."""
        self.run, self.keep, self.world, self._still_ours = run, keep, world, still_ours
        self._words = Exchange("checkpoint", world)
        self._neighbours: Any = None
        """Those that write one file together, as a group; made when the first checkpoint shows how many."""
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failures = 0
        """In a row."""

    def save(
        self,
        state: State,
        engine: Engine,
        ema: Ema,
        best: Mapping[str, Any] | None = None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin the checkpoint of ``state.step``; ``best`` (metric and value) makes it the best so far.

        ``after`` is called on every rank, in the saver's thread, when it is complete; where it could not be
        written, on none. A collective: every rank calls it at the same step.
        """
        began = time.monotonic()
        self.wait()
        tensors: dict[str, Tensor] = {}
        starts: dict[str, int] = {}
        for kind, shards in {"weights": engine.masters(), **ema.averages(), **engine.moments()}.items():
            for name, start, part in engine.parts(shards):
                # From pinned memory on, the copies queue behind each other, and one wait is for all.
                copy = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda)
                tensors[f"{kind}/{name}"] = copy.copy_(part, non_blocking=part.is_cuda)
                starts[f"{kind}/{name}"] = start
        if self.world.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        waited = time.monotonic() - began
        together = ranks_a_file(4 * len(KINDS) * engine.parameters, self.world.size)
        first = self.world.rank - self.world.rank % together
        neighbours = range(first, min(first + together, self.world.size))
        if len(neighbours) > 1 and self._neighbours is None:
            self._neighbours = side_group(neighbours)  # what they send must not mix with the training's
        self._thread = threading.Thread(
            target=self._guarded,
            args=(after, state, tensors, starts, together, best, waited),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the checkpoint in hand, if any, is complete."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error

    def settle(self) -> bool:
        """``wait``, but True where that checkpoint could not be written and the next may be. The same on all
        ranks."""
        try:
            self.wait()
        except OSError:
            if self._failures >= TRIES:
                raise
            self._error = None
            return True
        return False

    def _guarded(self, after: Callable[[], None], state: State, *arguments: Any) -> None:
        try:
            self._write(state, *arguments)
            self._failures = 0
            after()
        except OSError as error:
            self._failures += 1
            self._error = error
            if self.world.main:
                # All ranks have left it, and it takes room that the next one needs.
                shutil.rmtree(temporary_of(self.run, state.step), ignore_errors=True)
                why = told(error)
                line = f"checkpoint of step {state.step} not written ({self._failures} in a row): {why}"
                print(one_line(line), file=sys.stderr, flush=True)
                with contextlib.suppress(OSError):
                    ledger.record(self.run, "save_failed", step=state.step, why=why)
        except BaseException as error:
            self._error = error

    def _write(
        self,
        state: State,
        tensors: dict[str, Tensor],
        starts: dict[str, int],
        together: int,
        best: Mapping[str, Any] | None,
        waited: float,
    ) -> None:
        began, main = time.monotonic(), self.world.main
        if main:
            with contextlib.suppress(OSError):  # a launcher then does not wait for the checkpoint
                (self.run / SAVING).write_text(f"{state.step}\n")
            ledger.note(self.run, "saving", step=state.step)
        # Before any disk can fail: a rank that waits for another's parts would wait for ever.
        mine = collected(tensors, starts, self.world, together, self._neighbours)
        place = replace(
            self.world, rank=self.world.rank // together, size=-(-self.world.size // together)
        )  # of the file among the files
        manifest: dict[str, Any] = {}

        def shard() -> dict[str, Any]:
            assert mine is not None
            return write_shard(temporary_of(self.run, state.step), place, *mine)

        for written in self._on_each(range(0, self.world.size, together), shard):
            manifest.update(written)

        def rest() -> None:
            self._still_ours()
            finish(self.run, state, manifest)
            if best is not None:
                write_json(folder_of(self.run) / "best.json", {"step": state.step, **best})
            self._prune()
            (self.run / SAVING).unlink(missing_ok=True)
            took = round(time.monotonic() - began, 3)
            ledger.note(self.run, "saved", step=state.step, seconds=took, waited=round(waited, 3))

        self._on_each([0], rest)

    def _prune(self) -> None:
        """What goes wrong is told: the checkpoint itself is complete."""
        try:
            prune(self.run, self.keep)
        except (InputError, OSError) as error:
            print(one_line(f"old checkpoints were not removed: {error}"), file=sys.stderr, flush=True)
            ledger.note(self.run, "damaged", why=one_line(str(error)))

    def _on_each(self, ranks: Sequence[int], work: Callable[[], T]) -> list[T]:
        """``work`` on each of ``ranks``; its results, which JSON can hold, on rank 0, elsewhere none.

        If it fails on one, an error on every rank, which would go on otherwise: OSError where that was one.
        """
        problem, own, result = None, None, None
        if self.world.rank in ranks:
            try:
                result = work()
            except OSError as error:
                problem = [error.errno, error.strerror or str(error), error.filename and str(error.filename)]
            except Exception as error:
                problem, own = [None, f"{type(error).__name__}: {error}", None], error
        told = self._words.to_main([problem, result], ranks)
        failed = self._words.from_main(next(([rank, *p] for rank, (p, _) in sorted(told.items()) if p), None))
        if own is not None:
            raise own
        if failed is not None:
            rank, number, said, filename = failed
            if self.world.main:
                (self.run / SAVING).unlink(missing_ok=True)
            if number is None:
                raise RuntimeError(f"{said} (checkpoint, rank {rank})")
            raise OSError(number, f"{said} (checkpoint, rank {rank})", filename)
        return [result for _, (_, result) in sorted(told.items())]


def ranks_a_file(size: int, world: int) -> int:
    """How many neighbours write one file, so that a checkpoint of ``size`` bytes has files of ``FILL``."""
    return min(world, -(-FILL * world // max(1, size)))


def collected(
    tensors: dict[str, Tensor], starts: dict[str, int], world: World, together: int, group: Any
) -> tuple[dict[str, Tensor], dict[str, int]] | None:
    """The parts of ``together`` neighbouring ranks, on the first of them; None on the others.

    Neighbours' parts of a parameter follow each other at every ZeRO stage, so together they are one part.
    They travel, and are not written into one file from many nodes: over NFS a node writes whole pages, its
    neighbours' bytes among them, and the digests want all of a piece.
    """
    first = world.rank - world.rank % together
    if world.rank != first:
        told = [[key, starts[key], tensor.numel()] for key, tensor in tensors.items()]
        send_bytes(json.dumps(told).encode(), first, group)
        flat = torch.cat([torch.empty(0), *tensors.values()])
        send_bytes(flat.numpy().data.cast("B") if len(flat) else b"", first, group)
        return None
    parts = {key: [tensor] for key, tensor in tensors.items()}
    starts = dict(starts)
    for member in range(first + 1, min(first + together, world.size)):
        told = json.loads(receive_bytes(member, group))
        data = receive_bytes(member, group)
        flat = torch.frombuffer(data, dtype=torch.float32) if data else torch.empty(0)
        for (key, start, count), part in zip(told, flat.split([count for *_, count in told]), strict=True):
            end = starts.setdefault(key, start) + sum(map(len, parts.setdefault(key, [])))
            assert start == end, f"{key}: rank {member} begins at {start}, those before it end at {end}"
            assert len(part) == count
            parts[key].append(part)
    return {key: torch.cat(pieces) if len(pieces) > 1 else pieces[0] for key, pieces in parts.items()}, starts


def temporary_of(run: Path, step: int) -> Path:
    """The folder that a checkpoint is written in before it is complete."""
    return folder_of(run) / f".step-{step:08d}.tmp"


def write_shard(
    folder: Path, world: World, tensors: Mapping[str, Tensor], starts: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Write this rank's shard and sync it; returns its line of COMPLETE."""
    make_folder(folder)
    path = folder / shard_name(world.rank, world.size)
    write_tensors(path, tensors, {"starts": json.dumps(starts, sort_keys=True)})
    path.chmod(file_mode(folder))
    with named(path), path.open("rb") as file:
        os.fsync(file.fileno())
    return {path.name: seal_of(path, tensors, starts)}


def _synced(path: Path) -> dict[str, dict[str, Any]]:
    path.chmod(file_mode(path.parent))
    with named(path), path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {path.name: {"bytes": path.stat().st_size, "sha256": digest}}


def finish(run: Path, state: State, manifest: Mapping[str, Any]) -> None:
    """Make the folder whose shards are all there a checkpoint."""
    temporary = temporary_of(run, state.step)
    final = folder_at(run, state.step)
    shutil.rmtree(final, ignore_errors=True)  # of a save that was cut off: COMPLETE is not there
    path = temporary / "state.json"
    with named(path):
        path.write_text(json.dumps(asdict(state), indent=1, sort_keys=True) + "\n")
    manifest = {**manifest, **_synced(path)}
    sync_folder(temporary)
    temporary.rename(final)
    sync_folder(final.parent)
    with open_atomic(final / "COMPLETE") as file:
        os.fchmod(file.fileno(), file_mode(final))
        lines = (f"{json.dumps(name)}: {json.dumps(said)}" for name, said in sorted(manifest.items()))
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())
