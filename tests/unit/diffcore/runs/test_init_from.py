"""A run that begins with another's weights: each rank reads its own parts, and all get the same network."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from math import prod
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from diffbase.cli import InputError
from diffcore import models
from diffcore.config import configure
from diffcore.engine.partitions import NamedStates, Place, _share
from diffcore.engine.ranks import World
from diffcore.runs import checkpoint, export, source, tensors
from diffcore.runs.pretrained import files
from diffcore.runs.source import open_weights
from diffcore.runs.stored.record import manifest
from diffcore.runs.tensors import SealedFile
from shards.schema import CARTOON_SET
from tests.support import tiny_run
from tests.support.ranks import run_ranks

RANKS = 2
PIECE = 256


class Shared(NamedStates):
    """A network whose fp32 weights the ranks share out as ZeRO-3 does, without DeepSpeed."""

    stage, _optimizer, _unwrapped = 3, None, False

    def __init__(self, network: nn.Module, world: World) -> None:
        self.world = world
        self.names = {parameter: name for name, parameter in network.named_parameters()}
        self._masters = [torch.zeros(_share(self.size_of(p), world)[1]) for p in self.names]

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self._masters)

    @property
    def _stepped(self) -> list[Tensor]:
        return self._masters

    def _gathered(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _places(self) -> Iterator[Place]:
        for i, (parameter, name) in enumerate(self.names.items()):
            yield Place(name, *_share(self.size_of(parameter), self.world), i, 0)

    def now(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for parameter, name in self.names.items()}


class Alike(Shared):
    """A network whose weights every rank holds whole, as under ZeRO-0."""

    stage, _unwrapped = 0, True

    def __init__(self, network: nn.Module, world: World) -> None:
        super().__init__(network, World(0, 1, 0, world.device))  # the place of one alone: all
        self.world = world

    def _places(self) -> Iterator[Place]:
        for i, (parameter, name) in enumerate(self.names.items()):
            yield Place(name, 0, self.size_of(parameter), i, 0)


def network_of(run: Path) -> nn.Module:
    return models.build(configure.load(run / "config.yaml").model, tuple(CARTOON_SET), 8)


def counted(read: Callable[..., Tensor], elements: list[int]) -> Callable[..., Tensor]:
    def counting(*arguments: Any) -> Tensor:
        part = read(*arguments)
        elements[0] += part.numel()
        return part

    return counting


def begin(states: Any, place: Path, which: str) -> str | None:
    """``start_from``; what it has against it."""
    try:
        source.start_from(states, place, which)
    except InputError as error:
        return str(error)
    return None


def rank_of(rank: int, meet: Path, run: Path, out: Path, kind: type[Shared]) -> None:
    """Begin as one of two ranks from all there is; what was found goes into a file."""
    tensors.PIECE = PIECE
    opens: list[str] = []
    sys.addaudithook(lambda event, args: opens.append(str(args[0])) if event == "open" else None)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meet}/meet", rank=rank, world_size=RANKS
    )
    world = World(rank, RANKS, rank, torch.device("cpu"))
    elements = [0]
    sealed: Any = SealedFile
    sealed.read = counted(SealedFile.read, elements)

    def counting(file: Path) -> Any:
        shapes, read = open_weights(file)
        return shapes, counted(read, elements)

    started: Any = source
    started.open_weights = counting
    older, newest = checkpoint.complete(run)
    found: list[Any] = []
    for place in (run, newest, out):
        for which in ("ema", "raw"):
            states = kind(network_of(run), world)
            opens.clear()
            elements[0] = 0
            error = begin(states, place, which)
            heads = [path for path in opens if Path(path).name in ("COMPLETE", "state.json", "config.yaml")]
            read, held = elements[0], sum(t.numel() for t in states.masters())
            wanted = source.find(place).weights(which)
            same = states.now().keys() == wanted.keys()
            same = same and all(torch.equal(t, wanted[n]) for n, t in states.now().items())
            found.append([error, same, read, held, heads])
    torch.distributed.barrier()
    if rank == 0:
        damage(newest)
    torch.distributed.barrier()
    states = kind(network_of(run), world)
    found.append(begin(states, run, "ema"))
    wanted = checkpoint.read_weights(older, "ema")
    found.append(all(torch.equal(t, wanted[n]) for n, t in states.now().items()))
    found.append(begin(states, run, "raw"))  # the damage is in the average
    found.append(begin(states, newest, "ema"))
    found.append(begin(kind(nn.Linear(2, 3), world), out, "ema"))
    found.append(begin(states, meet / "nowhere", "ema"))
    small = out.with_suffix(".safetensors")
    found.append(begin(states := kind(network_of(run), world), small, "ema"))
    wanted = source.find(small).weights("ema")
    found.append(all(torch.equal(t, wanted[n]) for n, t in states.now().items()))
    found += [begin(states, small, "raw"), begin(states, Path("pretrained:none"), "ema")]
    (meet / f"{rank}").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def damage(folder: Path) -> None:
    """A flipped bit at the end of the largest parameter's average, which the last rank reads."""
    [path] = folder.glob("shard-*")
    seal = manifest(folder)[path.name]
    held = SealedFile(path, seal).tensors()
    largest = max((t for name, t in held.items() if name.startswith("ema/")), key=lambda t: t.count)
    data = bytearray(path.read_bytes())
    data[largest.offset + 4 * largest.count - 1] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Shared, Alike])
def test_each_rank_reads_its_parts_and_all_have_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Shared]
) -> None:
    monkeypatch.setattr(tensors, "PIECE", PIECE)
    run, out = tiny_run.write(tmp_path / "run", 4, 8), tmp_path / "out"
    export.export(run, out)
    export.compact(run, out.with_suffix(".safetensors"), "int8")
    run_ranks(rank_of, range(RANKS), tmp_path, run, out, kind, seconds=120)
    first, second = (json.loads((tmp_path / f"{rank}").read_text()) for rank in range(RANKS))
    whole = sum(prod(p.shape) for p in network_of(run).parameters())
    for rank, found in enumerate((first, second)):
        for error, same, read, held, heads in found[:6]:
            assert error is None and same
            assert held == whole if kind is Alike else read == held <= 0.6 * whole
            assert not heads or rank == 0
    for (*_, read, _, _), (*_, other, _, _) in zip(first[:6], second[:6], strict=True):
        assert read + other == whole
    for found in (first, second):
        on_older, older, on_raw, on_newest, misfit, nowhere = found[6:12]
        on_small, small, on_small_raw, on_none = found[12:]
        assert on_small is None and small and "averaged weights only" in on_small_raw
        assert "no such network ships" in on_none
        assert on_older is None and older and on_raw is None
        assert "do not have the sha256 that COMPLETE says" in on_newest
        assert misfit.startswith(f"init_from: {out}: ") and "this model has" in misfit
        assert "no run folder, checkpoint or export" in nowhere
    assert first[6:] == second[6:]


def test_one_rank_begins_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    run = tiny_run.write(tmp_path / "run", 4)
    network = network_of(run)
    states: Any = Shared(network, World(0, 1, 0, torch.device("cpu")))
    assert begin(states, run, "raw") is None
    wanted = checkpoint.read_weights(checkpoint.complete(run)[0], "weights")
    assert all(torch.equal(t, wanted[n]) for n, t in network.named_parameters())
    shutil.rmtree(checkpoint.folder_of(run))
    assert "no complete checkpoint" in (begin(states, run, "raw") or "")


@pytest.mark.parametrize(("which", "words"), [("raw", "averaged weights only"), ("ema", "says other bytes")])
def test_weights_that_ship_and_cannot_be_begun_with_are_one_line(
    which: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    run, file = tiny_run.write(tmp_path / "run", 4), tmp_path / "small.safetensors"
    export.compact(run, file, "int8")
    if which == "ema":
        file.write_bytes(file.read_bytes()[:-1])
    states: Any = Shared(network_of(run), World(0, 1, 0, torch.device("cpu")))
    found = begin(states, Path("pretrained:small"), which)
    assert found is not None and found.startswith("pretrained:small: ") and words in found


SHAPES = {"scalar": [], "none": [0, 3], "row": [7], "some": [5, 3], "more": [4, 2, 3, 2]}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(0)
    held = {name: torch.randn(shape) for name, shape in SHAPES.items()} | {"half": torch.randn(3, 5).half()}
    path = tmp_path_factory.mktemp("export") / "model.safetensors"
    safetensors.torch.save_file(held, path)
    return path, held


@given(data=st.data())
def test_any_part_of_an_export_is_what_it_holds(
    file: tuple[Path, dict[str, Tensor]], data: st.DataObject
) -> None:
    path, held = file
    shapes, read = open_weights(path)
    assert shapes == {name: list(tensor.shape) for name, tensor in held.items()}
    name = data.draw(st.sampled_from(sorted(held)))
    start = data.draw(st.integers(0, held[name].numel()))
    count = data.draw(st.integers(0, held[name].numel() - start))
    part = read("weights", name, start, count)
    assert part.dtype == torch.float32
    assert torch.equal(part, held[name].reshape(-1)[start : start + count].float())


@pytest.mark.parametrize("size", [0, 5, 60])
def test_a_file_that_is_no_export_is_one_line(
    file: tuple[Path, dict[str, Tensor]], tmp_path: Path, size: int
) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="no such file"):
        open_weights(path)
    path.write_bytes(file[0].read_bytes()[:size])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        open_weights(path)
