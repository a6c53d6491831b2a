"""How many processes the launcher is told to start."""

from __future__ import annotations

import pytest

from launch import ranks


@pytest.mark.parametrize(
    ("gpus", "visible", "cores", "wanted"),
    [
        (8, None, 64, "--num_gpus 8"),
        (3, "0,2,5", 64, ""),
        (0, None, 1, "--num_gpus 1"),
        (0, None, 2, "--num_gpus 2"),
        (0, "", 3, "--num_gpus 2"),
        (0, "-1", 64, "--num_gpus 4"),
    ],
)
def test_launcher_arguments(
    gpus: int, visible: str | None, cores: int, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "count_gpus", lambda: gpus)
    monkeypatch.setattr(ranks.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ranks.launcher_arguments() == wanted
