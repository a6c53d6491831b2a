"""The files of a checkpoint: its state, its shards, COMPLETE, best.json.

A damaged file is put in its place twice. With COMPLETE as it was the checkpoint is refused, or gives the
original. With a COMPLETE that agrees, as only a program writes one, it is refused or loads something.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import torch

from diffbase.cli import InputError
from diffbase.explain import checked
from diffcore.engine.ranks import World
from diffcore.runs import checkpoint, marks, saver
from diffcore.runs.stored import record
from diffcore.runs.stored.record import State
from diffcore.runs.stored.shards import Shards
from diffcore.training.guards.progress import Progress
from tests.support.fuzz.target import Target

WEIGHTS = torch.arange(6.0)
WORDS = [
    b'"step": 10',
    b'"w"',
    b'"shapes": {}',
    b'"F32"',
    b'"F8_E4M3"',
    b'"starts"',
    b"shard-00000-of-00002.safetensors",
]


def write(run: Path, step: int) -> Path:
    """A checkpoint of w [2, 3], of which rank 0 has 4 elements, and rank 1 the rest."""
    manifest = {}
    for rank, (start, end) in enumerate([(0, 4), (4, 6)]):
        tensors = {f"{kind}/w": WEIGHTS[start:end] + step for kind in record.KINDS}
        place = World(rank, 2, rank, torch.device("cpu"))
        starts = dict.fromkeys(tensors, start)
        manifest |= saver.write_shard(saver.temporary_of(run, step), place, tensors, starts)
    data = {"fingerprint": "0" * 64, "size": 8, "schema": [{"name": "a", "variants": 3}]}
    progress = Progress(losses=[0.5]).as_json()
    state = State(step, 4 * step, step, {"seed": 0}, data, 2, 1, "fp32", "x", {"w": [2, 3]}, progress)
    saver.finish(run, state, manifest)
    return checkpoint.folder_at(run, step)


def target() -> Target:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), 10)
        parts = {path.name: path.read_bytes() for path in write(Path(name), 20).iterdir()}
        older = {path.name: path.read_bytes() for path in checkpoint.folder_at(Path(name), 10).iterdir()}

    def load(run: Path) -> tuple[int, torch.Tensor] | None:
        """Step and weights, as a resume takes them up."""
        folder, skipped = checkpoint.newest(run)
        if folder is None:
            assert skipped
            return None
        state = record.read_state(folder)
        checked(Progress, state.progress, str(folder))
        shards = Shards(folder)
        for name, shape in state.shapes.items():
            for kind in record.KINDS if state.updates else record.WEIGHTS:
                shards.read(kind, name, 0, torch.Size(shape).numel())
        return state.step, checkpoint.read_weights(folder, "ema").get("w", torch.empty(0)).flatten()

    def feed(data: bytes, folder: Path) -> object:
        told: list[InputError] = []
        loaded, name = 0, "shard-00000-of-00002.safetensors"
        if data[:1] == b"{":  # whose place it is most like
            name = "COMPLETE" if b"sha256" in data else "state.json"
        for agrees in (False, True):
            run = folder / str(agrees)
            for step, files in ((10, older), (20, parts)):
                (place := checkpoint.folder_at(run, step)).mkdir(parents=True)
                for other, content in files.items():
                    (place / other).write_bytes(content)
            (place / name).write_bytes(data)
            if agrees and name != "COMPLETE":
                manifest = json.loads(parts["COMPLETE"])
                manifest[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                (place / "COMPLETE").write_text(json.dumps(manifest))
            if name == "state.json":
                (place.parent / "best.json").write_bytes(data)
            try:
                found = load(run)
                assert found is not None, "the older one is whole"
                loaded += found[0] == 20
                if not agrees or found[0] != 20:
                    assert torch.equal(found[1], WEIGHTS + found[0])
            except InputError as error:
                told.append(error)
            checkpoint.clear_best(run)
            checkpoint.prune(run, 1)
        assert marks.listed(run)
        if not loaded:
            raise told[0] if told else InputError("skipped, and the older one taken")
        return loaded

    best = json.dumps({"step": 10, "metric": "validation/loss", "value": 0.5}).encode()
    return Target([*parts.values(), best], feed, WORDS)
