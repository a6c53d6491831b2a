"""Files of tensors that are written: the same bytes each time, and a full disk is the system's error."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from diffcore.runs.tensors import write_tensors
from tests.support.faults import kit

TEXT = st.text(max_size=20)


@given(
    st.dictionaries(TEXT, TEXT, min_size=2, max_size=9), st.dictionaries(TEXT.filter(bool), st.integers(0, 9))
)
def test_the_same_tensors_are_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, str], sizes: dict[str, int]
) -> None:
    sizes.pop("__metadata__", None)
    folder = tmp_path_factory.mktemp("tensors")
    tensors = {name: torch.arange(size, dtype=torch.float32) for name, size in sizes.items()}
    write_tensors(folder / "a", tensors, metadata)
    write_tensors(folder / "b", tensors, dict(reversed(metadata.items())))
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    with safe_open(folder / "a", "pt") as opened:
        assert opened.metadata() == metadata
    found = load_file(folder / "a")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)


@pytest.mark.skipif(not kit.can_mount(), reason="LEFT OUT: mounting needs root")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with kit.tiny_disk(tmp_path / "disk", 1) as disk:
        with pytest.raises(OSError) as caught:
            write_tensors(disk / "a.safetensors", {"x": torch.zeros(1 << 20)}, {})
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(disk / "a.safetensors"))
