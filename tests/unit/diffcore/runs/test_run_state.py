"""Small parts that a run is made of: positions, pixels, metrics, the run folder, grids."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.explain import checked
from diffbase.files import REPOSITORY
from diffbase.formats import jsonl
from diffbase.page import pictures
from diffcore.config import configure
from diffcore.config.diffusion import NEWEST_DRAWS
from diffcore.diffusion.pixels import to_pixels, to_signal
from diffcore.runs import metrics, run_folder
from diffcore.runs.export import export
from diffcore.runs.model import load_network
from diffcore.training.batches import positions_of
from diffcore.training.guards.progress import Progress
from diffcore.training.loggers.monitor import Monitor
from tests.support import tiny_run

DEMO = REPOSITORY / "configs" / "demo-adamw.yaml"


@given(
    micro=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    world=st.integers(1, 8),
    step=st.integers(0, 99),
    order=st.sampled_from(["full", "streams"]),
)
def test_ranks_and_micro_steps_share_out_a_step(
    micro: int, accumulation: int, world: int, step: int, order: str
) -> None:
    size = micro * accumulation * world
    of_rank = [
        np.concatenate([positions_of(step, m, rank, world, micro, size, order) for m in range(accumulation)])
        for rank in range(world)
    ]
    assert sorted(np.concatenate(of_rank)) == list(range(step * size, (step + 1) * size))
    if order == "streams":  # its own part, however it is cut into micro batches
        assert np.concatenate(of_rank).tolist() == list(range(step * size, (step + 1) * size))


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


def test_a_run_that_began_since_the_check_is_seen_by_the_claim(tmp_path: Path) -> None:
    """Two start in the same empty folder: the second one gets it when the first has ended."""
    c = configure.load(DEMO, {"run": str(tmp_path / "run")})
    other = configure.replace(c, "optimizer", {"lr": 0.5})
    run_folder.check(c, DATA)
    run_folder.check(other, DATA)
    run_folder.claim(other, DATA).close()
    before = (c.run / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"another experiment \(optimizer\.lr was 0\.5"):
        run_folder.claim(c, DATA)
    assert (c.run / "config.yaml").read_text() == before
    run_folder.claim(other, DATA).close()  # the lock was given back


def test_a_setting_that_is_younger_than_the_folder_was_at_its_default(tmp_path: Path) -> None:
    c = configure.load(DEMO, {"run": str(tmp_path / "run")})
    run_folder.claim(c, DATA).close()
    record = json.loads((c.run / "run.json").read_text())
    for key in ("data.flip", "diffusion.pixels", "optimizer.betas"):
        del record["identity"][key]
    (c.run / "run.json").write_text(json.dumps(record))
    run_folder.check(c, DATA)
    with pytest.raises(InputError, match=r"another experiment \(data\.flip was False, now True\)"):
        run_folder.check(configure.replace(c, "data", {"flip": True}), DATA)


def test_a_run_keeps_the_version_of_its_draws(tmp_path: Path) -> None:
    """A new run has the newest; one whose record is older than versions goes on with the first."""
    c = configure.load(DEMO, {"run": str(tmp_path / "run")})
    assert c.diffusion.draws is None and run_folder.settled(c).diffusion.draws == NEWEST_DRAWS
    run_folder.claim(c, DATA).close()
    record = json.loads((c.run / "run.json").read_text())
    assert record["identity"]["diffusion.draws"] == NEWEST_DRAWS
    assert configure.load(c.run / "config.yaml").diffusion.draws == NEWEST_DRAWS
    run_folder.check(c, DATA)
    with pytest.raises(InputError, match=r"diffusion\.draws was 2, now 1"):
        run_folder.check(configure.replace(c, "diffusion", {"draws": 1}), DATA)

    for old in ({}, {"diffusion.draws": None}, {"diffusion.draws": 1}):
        identity = {k: v for k, v in record["identity"].items() if k != "diffusion.draws"} | old
        (c.run / "run.json").write_text(json.dumps(record | {"identity": identity}))
        assert run_folder.settled(c).diffusion.draws == 1
        if old.get("diffusion.draws", 1):
            run_folder.claim(c, DATA).close()
            assert configure.load(c.run / "config.yaml").diffusion.draws == 1
            run_folder.check(c, DATA)
            with pytest.raises(InputError, match=r"diffusion\.draws was 1, now 2"):
                run_folder.check(configure.replace(c, "diffusion", {"draws": 2}), DATA)
    (c.run / "run.json").write_text(json.dumps(record | {"identity": {"diffusion.draws": 3}}))
    with pytest.raises(InputError, match="draws"):
        run_folder.settled(c)


@pytest.mark.parametrize(("recorded", "order"), [("streams", "streams"), ("full", "full"), (None, "full")])
def test_auto_is_the_order_that_the_run_has(tmp_path: Path, recorded: str | None, order: str) -> None:
    c = configure.load(DEMO, {"run": str(tmp_path / "run")})
    assert c.data.order == run_folder.settled(c).data.order == "auto"
    run_folder.claim(configure.replace(c, "data", {"order": order}), DATA).close()
    path = c.run / "run.json"
    record = json.loads(path.read_text())
    if recorded is None:  # older than the setting
        del record["identity"]["data.order"]
        path.write_text(json.dumps(record))
    assert run_folder.settled(c).data.order == order
    run_folder.check(c, DATA)
    run_folder.check(configure.replace(c, "data", {"order": order}), DATA)
    other = configure.replace(c, "data", {"order": "block"})
    assert run_folder.settled(other).data.order == "block"
    with pytest.raises(InputError, match=rf"another experiment \(data\.order was '{order}', now 'block'\)"):
        run_folder.check(other, DATA)
    record["identity"]["data.order"] = 5
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="its order is 5; allowed: auto, full, block, shards, streams"):
        run_folder.check(c, DATA)


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


# --- a disk that fails, records that are damaged ---


def test_logs_that_cannot_be_written_are_told_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = Monitor(tmp_path, 0, 10, active=True)
    monitor.scalars(1, {"train/loss": 1.0})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "append", full)
        patch.setattr(monitor._writer, "add_scalar", full)
        for step in (2, 3):
            monitor.scalars(step, {"train/loss": 1.0})
            monitor.image("x", step, np.zeros((4, 4, 3), np.uint8))
    monitor.scalars(4, {"train/loss": 1.0})
    monitor.rewind(3)
    monitor.close()
    told = "cannot be written (No space left on device); training goes on"
    assert sorted(capsys.readouterr().out.splitlines()) == [f"metrics.jsonl {told}", f"tensorboard {told}"]
    assert [line["step"] for line in metrics.read(tmp_path)] == [1]


def test_damaged_figures_are_set_aside_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (
        b'{"step": 1, "train/loss": NaN}\n\xff\n{"step": true}\n{"step": 2, "train/loss": "x"}\n{"step": 3}\n'
    )
    (tmp_path / "metrics.jsonl").write_bytes(before)
    Monitor(tmp_path, 2, 10, active=True).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": null}\n'
    [aside] = tmp_path.glob("metrics.jsonl.damaged-*")
    assert aside.read_bytes() == before
    assert f"3 lines of {tmp_path / 'metrics.jsonl'} cannot be read; it is kept as {aside.name}" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_ledger_that_cannot_be_written_stops_nothing_unless_it_never_could(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def failing(*_: object) -> None:
        raise OSError(number, "x")

    monkeypatch.setattr(jsonl, "append", failing)
    if number == errno.EACCES:
        with pytest.raises(PermissionError):
            ledger.note(tmp_path, "start")
    else:
        error = ledger.note(tmp_path, "start")
        assert error is not None and error.errno == number


def test_a_progress_that_is_none_is_one_line() -> None:
    whole = Progress(losses=[0.5], best=1.0, skips=3)
    assert checked(Progress, json.loads(json.dumps(whole.as_json())), "x") == whole
    for change in ({"x": 1}, {"skips": "3"}, {"lr_factor": 0.0}, {"losses": [0.5] * 99}, {"best": math.inf}):
        with pytest.raises(InputError, match="state: "):
            checked(Progress, whole.as_json() | change, "state")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"identity": [], "data": {}}', '{"identity": {}, "data": 7}']
)
def test_a_damaged_record_of_the_run_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json: not a"):
        run_folder.check(configure.load(DEMO, {"run": str(tmp_path)}), DATA)


def test_weights_of_another_network_are_one_line_and_take_no_memory(tmp_path: Path) -> None:
    export(tiny_run.write(tmp_path / "run", 5), tmp_path / "out")
    text = (tmp_path / "out" / "config.yaml").read_text()
    for channels in ([16, 8], [8, 65536]):
        changed = yaml.safe_load(text)
        changed["model"]["channels"] = channels
        (tmp_path / "out" / "config.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(InputError, match="these weights are another network's than its config's"):
            load_network(tmp_path / "out")
    (tmp_path / "out" / "config.yaml").write_text(text)
    load_network(tmp_path / "out")
