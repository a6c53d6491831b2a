"""What lies beside the grids of a run fits them, after a resume too."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffbase.files import REPOSITORY
from diffbase.formats import json_file
from diffcore.config import configure
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World
from diffcore.training import grids
from diffcore.training.grids import SampleGrids
from diffcore.training.loggers.monitor import Monitor
from shards.table import Index
from tests.support import small_set


def drawn_black(one: SampleGrids, _: Engine) -> NDArray[np.uint8]:
    return np.zeros((len(one.labels), one.size, one.size, 3), np.uint8)


def test_rank_0_alone_reads_the_images_that_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = small_set.packed(tmp_path, 40)
    values = {"data": {"path": packed}, "sampling": {"count": 3}, "run": tmp_path / "run"}
    config = configure.load(REPOSITORY / "configs" / "demo.yaml", values)
    said: list[Any] = []
    drawn: list[Any] = []

    def tell(value: Any, world: World) -> Any:
        if world.main:
            said.append(value)
        else:
            assert value is None
        return said[0]

    def keep(network: Any, schedule: Any, labels_NA: Tensor, sampling: Any, **rest: Any) -> None:
        drawn.append((labels_NA, rest["shape"]))

    monkeypatch.setattr(grids, "from_rank", tell)
    monkeypatch.setattr(grids, "draw_shared", keep)
    first, second = (
        SampleGrids(config, Index.load(packed), World(rank, 2, 0, torch.device("cpu"))) for rank in range(2)
    )
    assert first.real is not None and second.real is None
    assert (first.real.labels == np.array(second.labels)).all()
    for one in (first, second):
        one._draw(cast(Any, SimpleNamespace(world=None)))
    wanted = torch.from_numpy(first.real.labels)
    assert all(torch.equal(labels, wanted) and shape == (3, 16, 16) for labels, shape in drawn)
    assert len(drawn) == 2


def test_a_resume_with_another_count_says_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = small_set.packed(tmp_path, 40)
    monkeypatch.setattr(SampleGrids, "_draw", drawn_black)
    engine: Any = SimpleNamespace(swapped=nullcontext, world=SimpleNamespace(main=True))
    ema: Any = SimpleNamespace(full=dict)
    monitor = Monitor(tmp_path / "run", 0, 10, active=True)
    (tmp_path / "run").mkdir(exist_ok=True)
    alone = World(0, 1, 0, torch.device("cpu"))
    shown = []
    for step, count in enumerate((2, 3)):
        values = {"data": {"path": packed}, "sampling": {"count": count}, "run": tmp_path / "run"}
        config = configure.load(REPOSITORY / "configs" / "demo.yaml", values)
        SampleGrids(config, Index.load(packed), alone).log(step, engine, ema, monitor)
        folder = tmp_path / "run" / "samples"
        assert len(json_file.read(folder / "labels.json")) == count
        shown.append((folder / "real.png").read_bytes())
    assert shown[0] != shown[1]
    monitor.close()
