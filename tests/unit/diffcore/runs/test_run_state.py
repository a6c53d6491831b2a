"""Small parts that a run is made of: positions, pixels, metrics, the run folder, grids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffbase.page import pictures
from diffcore.config import configure
from diffcore.diffusion.pixels import to_pixels, to_signal
from diffcore.runs import run_folder
from diffcore.training.batches import positions_of
from diffcore.training.monitor import Monitor

DEMO = REPOSITORY / "configs" / "demo.yaml"


@given(
    micro=st.integers(1, 5), accumulation=st.integers(1, 4), world=st.integers(1, 8), step=st.integers(0, 99)
)
def test_ranks_and_micro_steps_share_out_a_step(micro: int, accumulation: int, world: int, step: int) -> None:
    size = micro * accumulation * world
    parts = [
        positions_of(step, micro_step, rank, world, micro, size)
        for micro_step in range(accumulation)
        for rank in range(world)
    ]
    assert sorted(np.concatenate(parts)) == list(range(step * size, (step + 1) * size))


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    signal = to_signal(pixels)
    assert signal.min() == -1 and signal.max() == 1 and signal.shape == (1, 3, 16, 16)
    assert np.array_equal(to_pixels(signal), pixels)
    assert to_pixels(torch.tensor([[[[-9.0, 9.0]]]])).tolist() == [[[[0], [255]]]]


def test_metrics_of_steps_to_be_made_again_are_dropped(tmp_path: Path) -> None:
    for start, end in ((0, 6), (3, 5)):
        monitor = Monitor(tmp_path, start, 10, active=True)
        for step in range(start + 1, end):
            monitor.scalars(step, {"train/loss": start + step / 10})
        monitor.close()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 1, "torn')
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()[:-1]
    steps = [(json.loads(line)["step"], json.loads(line)["train/loss"]) for line in lines]
    assert steps == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 3.4)]


DATA = {"fingerprint": "f" * 64, "size": 64, "schema": []}


def test_a_run_folder_is_bound_to_its_experiment(tmp_path: Path) -> None:
    c = configure.load(DEMO, {"run": str(tmp_path / "run")})
    run_folder.check(c, DATA)
    claim = run_folder.claim(c, DATA)
    with pytest.raises(InputError, match="another process is training"):
        run_folder.claim(c, DATA)
    claim.close()
    run_folder.check(c, DATA)
    run_folder.check(configure.replace(c, "engine", {"zero": 3}), DATA)
    assert c.run.stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match=r"another experiment \(optimizer\.lr was 0\.\d+, now 0\.5\)"):
        run_folder.check(configure.replace(c, "optimizer", {"lr": 0.5}), DATA)
    with pytest.raises(InputError, match="other shards"):
        run_folder.check(c, DATA | {"fingerprint": "0" * 64})


def test_a_folder_that_is_no_run_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        run_folder.check(configure.load(DEMO, {"run": str(tmp_path)}), DATA)


def test_grid_places_images_row_by_row() -> None:
    images = np.stack([np.full((4, 4, 3), i * 10, np.uint8) for i in range(5)])
    tiled = pictures.grid(images, columns=3, gap=1, least=8)
    assert tiled.shape == (2 * 9 + 1, 3 * 9 + 1, 3)
    assert tiled[1, 1, 0] == 0 and tiled[1, 10, 0] == 10 and tiled[10, 10, 0] == 40
    assert tiled[10, 19, 0] == 255 and tiled[0, 0, 0] == 255
    named = pictures.with_row_names(pictures.grid(images[:4], columns=2), ["raw", "averaged"])
    assert (named[:, -198:] == pictures.grid(images[:4], columns=2)).all()
    margin = named[:, :-198] < 128
    assert margin[: len(named) // 2].any() and margin[len(named) // 2 :].any()
