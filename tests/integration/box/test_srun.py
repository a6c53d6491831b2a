"""Training started by a plain srun, without anything of ``launch``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.integration.conftest import TRAIN

from .conftest import RunningBox


def test_tasks_on_two_nodes_train_one_run(box: RunningBox, small: Path) -> None:
    command = [sys.executable, str(TRAIN), "--config", str(small), "--train.steps", "1"]
    said = box.run("srun", "-N2", "-n2", *command, timeout=200)
    assert said.count("parameters, ") == 1 and "2 ranks on cpu" in said
    started = [json.loads(line) for line in (small.parent / "run" / "events.jsonl").open()]
    assert [event["world"] for event in started if event["event"] == "start"] == [2]
