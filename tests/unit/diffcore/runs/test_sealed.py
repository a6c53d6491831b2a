"""A part of a file of tensors: read alone, checked alone, and never another byte than was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffcore.engine.ranks import World
from diffcore.runs import saver, tensors
from diffcore.runs.stored.record import KINDS
from diffcore.runs.stored.shards import Shards
from diffcore.runs.tensors import DamagedError, Seal, SealedFile
from tests.unit.diffcore.runs.test_checkpoint import written

SIZES = {"a": 200, "b": 7, "c": 31}


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "PIECE", 256)
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Seal, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("sealed")
    torch.manual_seed(0)
    tensors = {f"{kind}/{name}": torch.randn(size) for kind in KINDS for name, size in SIZES.items()}
    starts = {key: 10 * (key[-1] == "b") for key in tensors}
    place = World(0, 1, 0, torch.device("cpu"))
    [(name, said)] = saver.write_shard(folder, place, tensors, starts).items()
    return folder / name, Seal.model_validate(said), tensors


Sealed = tuple[Path, Seal, dict[str, torch.Tensor]]


def test_a_seal_says_where_everything_is(file: Sealed) -> None:
    path, seal, tensors = file
    assert seal.places() == {key: (10 * (key[-1] == "b"), t.numel()) for key, t in tensors.items()}
    assert seal.bytes == path.stat().st_size and len(seal.pieces) == -(-seal.bytes // 256)
    SealedFile(path, seal).check()


@given(data=st.data(), kind=st.sampled_from(KINDS), name=st.sampled_from(sorted(SIZES)))
def test_any_part_is_what_was_written_or_damage_is_told(
    file: Sealed, data: st.DataObject, kind: str, name: str
) -> None:
    """With one bit flipped anywhere: in a piece that is read it is told; elsewhere it changes nothing."""
    path, seal, tensors = file
    first = data.draw(st.integers(0, SIZES[name]))
    count = data.draw(st.integers(0, SIZES[name] - first))
    at = data.draw(st.integers(0, seal.bytes - 1))
    wanted = tensors[f"{kind}/{name}"][first : first + count]
    opened = SealedFile(path, seal)
    assert torch.equal(opened.read(f"{kind}/{name}", first, count), wanted)
    begin = opened.tensors()[f"{kind}/{name}"].offset + 4 * first
    touched = set(range(begin // 256, -(-(begin + 4 * count) // 256))) if count else set()
    head = range(-(-(8 + int.from_bytes(path.read_bytes()[:8], "little")) // 256))

    broken = bytearray(path.read_bytes())
    broken[at] ^= 1 << data.draw(st.integers(0, 7))
    other = path.with_name("broken")
    other.write_bytes(broken)
    if at // 256 in touched.union(head):
        with pytest.raises(DamagedError, match="broken"):
            SealedFile(other, seal).read(f"{kind}/{name}", first, count)
    else:
        assert torch.equal(SealedFile(other, seal).read(f"{kind}/{name}", first, count), wanted)
    with pytest.raises(DamagedError):
        SealedFile(other, seal).check()


@pytest.mark.parametrize("part", [[0, 4], [1, 2], [0, 1]])
def test_a_complete_that_points_elsewhere_is_told(tmp_path: Path, part: list[int]) -> None:
    """The map is where to look; what is there the file itself says."""
    [folder] = written(tmp_path, 5)
    path = folder / "shard-00000-of-00002.safetensors"
    [(_, seal)] = [(n, s) for n, s in Shards(folder)._seals.items() if n == path.name]
    assert seal is not None and seal.parts == {"w": [0, 2]}
    with pytest.raises(DamagedError, match="does not hold what COMPLETE says"):
        SealedFile(path, seal.model_copy(update={"parts": {"w": part}})).check()


def test_only_files_that_hold_what_is_wanted_are_opened(tmp_path: Path) -> None:
    [folder] = written(tmp_path, 5, world=4)
    shards = Shards(folder)
    assert not shards.opened
    assert shards.read("ema", "w", 1, 2).tolist() == [2, 3]
    assert sorted(shards.opened) == ["shard-00001-of-00004.safetensors", "shard-00002-of-00004.safetensors"]


def test_a_file_cut_short_is_damage(file: Sealed) -> None:
    path, seal, _ = file
    other = path.with_name("short")
    other.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="ends before"):
        SealedFile(other, seal).check()
