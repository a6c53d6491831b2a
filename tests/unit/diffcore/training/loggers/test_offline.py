"""W&B offline and MLflow's files: one run over two lives, each step once, no secrets in the run folder."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.training.loggers import chosen, monitor

BLOCK, FULL, LAST = 1 << 15, 1, 4
SECRET = "5ec2e7" * 6 + "abcd"
KEPT = [(step, 1 / step) for step in range(1, 8)]


@pytest.fixture
def config_of(
    memory_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Config]:
    """A config with a logger, in an environment that has secrets and reaches nobody."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def made(name: str) -> Config:
        pytest.importorskip(name)
        changes = {"run": tmp_path / "run", "data": {"path": f"https://me:{SECRET}@host/x?sig={SECRET}"}}
        return configure.load(memory_config, {**changes, "monitor": {"loggers": [name]}})

    return made


def two_lives(config: Config) -> None:
    """Seven steps: a life is cut off after the fifth, and the next one begins at the second."""
    config.run.mkdir()
    for start, end in ((0, 5), (2, 7)):
        opened = monitor.Monitor(config.run, start, 9, True, False, chosen.trackers(config))
        for step in range(start + 1, end + 1):
            opened.scalars(step, {"train/loss": 1 / step})
        opened.image("samples/raw", end, np.zeros((4, 4, 3), np.uint8))
        opened.close()
    for path in config.run.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_wandb_has_one_run_and_each_step_once(config_of: Callable[[str], Config]) -> None:
    config = config_of("wandb")
    two_lives(config)
    files = sorted((config.run / "wandb").rglob("*.wandb"))
    assert len(files) == 2 and files[0].name == files[1].name  # a folder a life, of one run
    assert [point for file in files for point in history(file)] == KEPT


def history(path: Path) -> list[tuple[int, float]]:
    """Steps and losses of a file of W&B's."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for data in records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        if "train/loss" in items:
            step = json.loads(items["_step"]) if "_step" in items else record.history.step.num
            found.append((step, json.loads(items["train/loss"])))
    return found


def records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after a header of seven bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no room for the head of a record
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            yield whole
            whole = b""


def test_mlflow_has_one_run_and_each_step_once(config_of: Callable[[str], Config]) -> None:
    config = config_of("mlflow")
    two_lives(config)
    losses = list((config.run / "mlflow").rglob("metrics/train/loss"))
    assert len(losses) == 1
    lines = [line.split() for line in losses[0].read_text().splitlines()]
    assert [(int(step), float(value)) for _, value, step in lines] == KEPT
    [kept] = (config.run / "mlflow").rglob("artifacts/config.yaml")
    assert "https://host/x" in kept.read_text()
    assert len(list(kept.parent.rglob("*.png"))) == 2


def test_a_logger_that_is_not_installed_is_told(
    memory_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # where W&B writes by itself: no package
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    config = configure.load(memory_config, {"monitor": {"loggers": ["tensorboard", "wandb"]}})
    with pytest.raises(InputError, match=r"wandb is not installed: pip install 'diffcore\[wandb\]'"):
        chosen.check(config)
    chosen.check(configure.load(memory_config))
    with pytest.raises(InputError, match="each once"):
        configure.load(memory_config, {"monitor": {"loggers": ["mlflow", "mlflow"]}})
