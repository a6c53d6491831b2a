"""What the preflight makes of what it sees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import preflight
from launch.takeover import lost_nodes


def test_room_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    assert preflight.room(tmp_path, 0.0, "scratch") is None
    assert list(tmp_path.iterdir()) == []
    problem = preflight.room(tmp_path, 1e9, "scratch")
    assert problem is not None
    assert "GB free, 1e+09 wanted" in problem


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    assert (
        preflight.room(tmp_path / "no", 0, "run folder")
        == f"run folder {tmp_path / 'no'}: No such file or directory"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_others_is_told() -> None:
    assert preflight.room(Path("/"), 0, "scratch") == "scratch /: Permission denied"


@given(st.integers(3, 12), st.data())
def test_a_single_slow_node_is_found_among_its_neighbours(nodes: int, data: st.DataObject) -> None:
    slow = data.draw(st.integers(0, nodes - 1))
    pairs = {f"n{i} n{(i + 1) % nodes}": 1.0 if slow in (i, (i + 1) % nodes) else 10.0 for i in range(nodes)}
    assert set(preflight.slow_nodes(pairs, 5.0)) == {f"n{slow}"}
    assert preflight.slow_nodes(pairs, 0.5) == {}
    assert preflight.slow_nodes(pairs, 50.0) == {}  # all of them: no node's fault


def test_lost_nodes_are_read() -> None:
    assert lost_nodes("n1 idle\nn2 down*\nn2 down*\nn3 mix*\nn4 alloc\nn5 failing\n") == ["n2", "n3", "n5"]
