"""What lies beside the grids of a run fits them, after a resume too."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffbase.files import REPOSITORY
from diffbase.formats import json_file
from diffcore.config import configure
from diffcore.training.grids import SampleGrids
from diffcore.training.monitor import Monitor
from shards.table import Index
from tests.support import small_set


def test_a_resume_with_another_count_says_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = small_set.packed(tmp_path, 40)
    monkeypatch.setattr(SampleGrids, "_draw", lambda self, engine: np.zeros_like(self.real.images))
    engine: Any = SimpleNamespace(swapped=nullcontext, world=SimpleNamespace(main=True))
    ema: Any = SimpleNamespace(full=dict)
    monitor = Monitor(tmp_path / "run", 0, 10, active=True)
    (tmp_path / "run").mkdir(exist_ok=True)
    shown = []
    for step, count in enumerate((2, 3)):
        values = {"data": {"path": packed}, "sampling": {"count": count}, "run": tmp_path / "run"}
        config = configure.load(REPOSITORY / "configs" / "demo.yaml", values)
        SampleGrids(config, Index.load(packed)).log(step, engine, ema, monitor)
        folder = tmp_path / "run" / "samples"
        assert len(json_file.read(folder / "labels.json")) == count
        shown.append((folder / "real.png").read_bytes())
    assert shown[0] != shown[1]
    monitor.close()
