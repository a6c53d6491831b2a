"""The judge where labels are unknown, sets are tiny, images are damaged, and it lies somewhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from diffbase.cli import InputError
from diffbase.formats import json_file
from diffcore import evaluate, export, sample
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.engine.ranks import World
from diffcore.evaluation import collapse, colors, findings, flags, points, sweep, train_judge
from diffcore.evaluation.judging import judge, training
from diffcore.evaluation.judging.intervals import mean_of_shares, wilson
from diffcore.evaluation.quality import measure, probe, record, report
from diffcore.memory.commands import measure as measure_memory
from diffcore.runs.data import held_out_samples, with_data
from diffcore.runs.export import portable
from diffcore.runs.model import load_model
from shards import pack
from shards.schema import CARTOON_SET, UNKNOWN, Attribute
from shards.table import Index
from tests.support import tiny_run

ALONE = World(0, 1, 0, torch.device("cpu"))
SCHEMA = (Attribute("shape", 3), Attribute("hue", 4), Attribute("only", 1))


def packed(folder: Path, count: int, classes: int, val: float, *, noise: bool = False) -> Path:
    """``count`` images of each class, coloured squares or nothing but noise, packed at 16 x 16."""
    random = np.random.default_rng(0)
    for kind in range(classes):
        (folder / "images" / f"kind {kind}").mkdir(parents=True)
        for i in range(count):
            color = random.integers(0, 256, (10, 10, 3)) if noise else np.eye(3)[kind % 3] * 220
            pixels = np.full((16, 16, 3), 255, np.uint8)
            pixels[3:13, 3:13] = color
            Image.fromarray(pixels).save(folder / "images" / f"kind {kind}" / f"{i}.png")
    options = ["--out", str(folder / "shards"), "--size", "16", "--jobs", "1", "--val", str(val)]
    pack.main([str(folder / "images"), *options])
    return folder / "shards"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards of two classes, and their judge in a folder of its own."""
    folder = tmp_path_factory.mktemp("judged")
    data = packed(folder, 30, 2, 0.3)
    train_judge.main([str(data), "--out", str(folder / "judge"), "--epochs", "4", "--width", "8"])
    return data, folder / "judge"


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards in which nothing tells the classes apart, and a judge beside them that so learned nothing."""
    data = packed(tmp_path_factory.mktemp("unreadable"), 20, 3, 0.5, noise=True)
    train_judge.main([str(data), "--epochs", "1", "--width", "8"])
    return data, data / "judge"


def config_of(data: Path | str, **overrides: Any) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(tiny_run.CONFIG.format(run="run"))
        return configure.load(path, configure.nested({"data.path": str(data), **overrides}))


# --- intervals ----------------------------------------------------------------------------------------------


@st.composite
def readings(draw: st.DrawFn) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of some samples' attributes are right and which count, the rare cases among them."""
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    right, counts = draw(st.sampled_from([0, 0.02, 0.5, 0.98, 1])), draw(st.sampled_from([0.1, 0.7, 1]))
    return random.random(shape) < right, random.random(shape) < counts


@given(readings())
def test_the_interval_of_a_mean_stays_within_0_and_1(
    reading: tuple[NDArray[np.bool_], NDArray[np.bool_]],
) -> None:
    mean = mean_of_shares(*reading)
    if not reading[1].any():
        assert math.isnan(mean.mean) and math.isnan(mean.low) and math.isnan(mean.high)
        return
    assert 0 <= mean.low <= mean.mean <= mean.high <= 1
    assert mean.low < mean.high  # however alike the samples are, they are not all there could be


@given(st.integers(0, 30), st.integers(1, 30))
def test_the_interval_of_one_attribute_is_wilsons(hits: int, misses: int) -> None:
    hit_NA = np.arange(hits + misses)[:, None] < hits
    mean, share = mean_of_shares(hit_NA, np.ones_like(hit_NA)), wilson(hits, hits + misses)
    assert (mean.mean, mean.low, mean.high) == pytest.approx((share.share, share.low, share.high))


# --- unknown labels -----------------------------------------------------------------------------------------


@st.composite
def labelled(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels of SCHEMA, some unknown, and what was read: [N, A] each."""
    count = draw(st.integers(1, 12))

    def column(least: int) -> NDArray[np.int64]:
        rows = [[draw(st.integers(least, a.variants - 1)) for a in SCHEMA] for _ in range(count)]
        return np.array(rows, np.int64)

    return column(UNKNOWN), column(0)


@given(labelled())
def test_an_unknown_label_does_not_count(given: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
    labels_NA, read_NA = given
    scores = judge.compare(SCHEMA, read_NA, labels_NA)
    for column, attribute in enumerate(SCHEMA):
        known = labels_NA[:, column] != UNKNOWN
        share = scores.shares[attribute.name]
        assert share.count == known.sum()
        assert share.hits == (labels_NA[known, column] == read_NA[known, column]).sum()
        table = training.confusion(
            read_NA[:, column], labels_NA[:, column], scores.counted_NA[:, column], attribute.variants
        )
        assert np.sum(table) == share.count and np.trace(table) == share.hits


@given(labelled())
def test_the_loss_is_the_plain_one_over_what_is_known(
    given: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> None:
    labels_BA = torch.from_numpy(given[0])
    logits_BV = torch.linspace(-2, 3, len(labels_BA) * 8).sin().reshape(-1, 8).requires_grad_()
    expected = 0.0
    for column, part in enumerate(judge.split(SCHEMA, logits_BV.detach())):
        known = labels_BA[:, column] != UNKNOWN
        if known.any():
            expected += F.cross_entropy(part[known], labels_BA[known, column]).item()
    loss = training.loss_of(SCHEMA, logits_BV, labels_BA)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert logits_BV.grad is not None and logits_BV.grad.isfinite().all()


def test_the_held_out_loss_does_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (7, 16, 16, 3), np.uint8)
    labels = np.stack([random.integers(-1, a.variants, 7) for a in SCHEMA], axis=1)
    net = judge.JudgeNet(SCHEMA, 16, width=8)
    whole = training._held_out_losses(net, SCHEMA, images, labels).numpy()
    monkeypatch.setattr(training, "READ_BATCH", 2)
    assert training._held_out_losses(net, SCHEMA, images, labels).numpy() == pytest.approx(whole, rel=1e-5)


# --- the record ---------------------------------------------------------------------------------------------


def test_the_variants_names_are_kept_and_an_older_record_loads(
    judged: tuple[Path, Path], tmp_path: Path
) -> None:
    data, folder = judged
    schema = judge.load(folder, Index.load(data)).schema
    assert [a.said(v) for a in schema for v in range(a.variants)] == ["kind 0", "kind 1"]
    tree = json.loads((folder / "judge.json").read_text())
    del tree["schema"][0]["names"]
    tree["accuracy"]["class"] |= dict.fromkeys(("share", "low", "high"), math.nan)  # as older ones have it
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "judge.json").write_text(json.dumps(tree))
    old = judge.load(tmp_path, Index.load(data))
    assert old.schema == schema and old.schema[0].names == ()
    tree["schema"][0]["names"] = ["one too few"]
    (tmp_path / "judge.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match="not one for each variant"):
        judge.load(tmp_path)


def test_a_set_of_its_own_is_in_the_record_and_an_unknown_one_is_refused_before_any_work(
    judged: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(judged[0]), "--out", str(tmp_path / "own"), "--epochs", "1", "--width", "8", "--headline"]
    train_judge.main([*command, "class"])
    tree = json.loads((tmp_path / "own" / "judge.json").read_text())
    assert tree["headline"] == ["class"] and tree["cpu_seconds"] > 0 and tree["epochs"] == 1
    monkeypatch.setattr(training, "JudgeNet", None)
    with pytest.raises(InputError, match="no attribute 'nose' to judge by; allowed are class"):
        train_judge.main([*command, "nose"])


def test_what_an_image_does_not_show_is_unknown_to_the_judge() -> None:
    names = [a.name for a in CARTOON_SET]
    labels = np.zeros((2, len(names)), np.int64)
    labels[1, names.index("glasses")] = 11  # none
    told = training.seen(CARTOON_SET, labels)
    assert (told[0] == 0).all() and [names[i] for i in np.flatnonzero(told[1] == UNKNOWN)] == [
        "glasses_color"
    ]


# --- tiny sets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "classes", "val"), [(2, 1, 0.5), (1, 3, 0.5), (2, 2, 0.5), (5, 1, 0.4), (3, 3, 0.2)]
)
def test_a_judge_of_a_handful_of_images_is_trained_and_opened(
    count: int, classes: int, val: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = packed(tmp_path, count, classes, val)
    train_judge.main([str(data), "--epochs", "1", "--width", "8"])
    opened = judge.load(data / "judge", Index.load(data))
    json_file.read(data / "judge" / "judge.json")  # standard JSON
    told = capsys.readouterr()
    assert "nan" not in told.out
    assert ("no headline fidelity" in told.err) == (opened.refused is not None)
    assert (opened.refused is not None) == (set(opened.readable) != {a.name for a in opened.schema})
    assert classes > 1 or not opened.readable  # of one variant there is nothing to read


# --- a judge that reads nothing -----------------------------------------------------------------------------


def drawn_by(built: probe.Probe, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The figures of a probe, with held-out images in the place of drawn ones."""
    images = held_out_samples(built.config, built.samples).images
    monkeypatch.setattr(probe, "draw_shared", lambda *_, **__: np.resize(images, (built.samples, 16, 16, 3)))
    engine: Any = SimpleNamespace(swapped=lambda _: contextlib.nullcontext(), world=ALONE)
    ema: Any = SimpleNamespace(full=lambda: None)
    return built(engine, ema)


def test_a_probe_whose_judge_reads_nothing_says_so_and_measures_the_rest(
    unreadable: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = unreadable
    config = config_of(data)
    built = probe.probe_of(config, Index.load(data), ALONE, samples=4)
    assert built is not None and "no headline fidelity (over 1): the judge reads class" in built.notes[0]
    figures = drawn_by(built, monkeypatch)
    assert set(figures) == {"quality/frechet"} and math.isfinite(figures["quality/frechet"])


@pytest.mark.parametrize("size", [2, 3, 40])
def test_each_rank_reads_its_share_of_the_real_images_and_rank_0_has_the_features_of_all(
    unreadable: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(judge, "BATCH", 3)
    data, folder = unreadable
    given, made, read = (config_of(data), Index.load(data)), {}, list[int]()
    alone = probe.Probe(*given, ALONE, folder, 4).real_NF
    inside = probe.samples_at

    def counted(config: Config, split: str, positions: Any) -> Any:
        read.extend(positions)
        return inside(config, split, positions)

    def gathered(array: NDArray[np.floating], world: World) -> list[NDArray[np.floating]]:
        made[world.rank] = array
        return [made[rank] for rank in range(size)] if world.main else []

    monkeypatch.setattr(probe, "samples_at", counted)
    monkeypatch.setattr(probe, "gather_arrays", gathered)
    for rank in reversed(range(size)):
        seen = probe.Probe(*given, World(rank, size, rank, ALONE.device), folder, 4).real_NF
        assert len(made[rank]) <= 3 * -(-len(alone) // (3 * size))
        assert rank == 0 or not len(seen)
    assert sorted(read) == list(range(len(alone)))
    assert np.array_equal(seen, alone)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({}, r"the judge reads class in [0-9.]+ % of the held-out images right"),
        ({"validation.drawn": 0}, "validation.drawn is 0"),
        ({"data.judge": "nowhere"}, "nowhere/judge.json: no judge here"),
    ],
    ids=str,
)
def test_the_best_by_a_fidelity_that_nobody_measures_is_refused(
    unreadable: tuple[Path, Path], overrides: dict[str, Any], told: str
) -> None:
    config = config_of(unreadable[0], **{"train.best": "quality/fidelity", **overrides})
    with pytest.raises(InputError, match=told):
        probe.probe_of(config, Index.load(unreadable[0]), ALONE)


def test_without_a_judge_the_best_by_fidelity_is_refused_and_else_there_is_no_probe(
    judged: tuple[Path, Path],
) -> None:
    data, folder = judged
    config, index = config_of(data), Index.load(data)
    assert probe.probe_of(config, index, ALONE) is None
    by_fidelity = configure.changed(config, {"train": {"best": "quality/fidelity"}})
    with pytest.raises(InputError, match=r"there is no judge .*data\.judge is its folder"):
        probe.probe_of(by_fidelity, index, ALONE)
    with_judge = configure.changed(by_fidelity, {"data": {"judge": folder}})
    built = probe.probe_of(with_judge, index, ALONE, samples=4)
    assert built is not None and built.notes == ["quality/fidelity is over one attribute, all there is"]


class Drawn:
    """What a run is for ``measure``: held-out images in the generator's place."""

    def __init__(self, data: Path) -> None:
        self.config = config_of(data)
        self.schema, self.step = Index.load(data).schema, 0
        self.images = held_out_samples(self.config, 8).images

    def draw(self, labels_BA: Any, sampling: Any, seed: int, batch: int, positions: Sequence[int]) -> Any:
        return self.images[np.array(positions, int) % len(self.images)]


def test_an_evaluation_by_a_judge_that_reads_nothing_has_shares_and_no_mean(
    unreadable: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, folder = unreadable
    run: Any = Drawn(data)
    measured = measure.measure(run, judge.load(folder), run.config.sampling, ALONE, samples=8)
    figures = record.write(tmp_path, tmp_path / "run", "ema", run, measured)
    record.show(figures, "fidelity")
    told = capsys.readouterr().out
    assert "nan" not in told and "no headline fidelity (over 1): " in told and "HEADLINE" not in told
    tree = json_file.read(tmp_path / "quality.json")
    assert tree["fidelity"]["mean"] is None and tree["fidelity"]["refused"].startswith("no headline")
    assert tree["fidelity"]["ceiling"] is None and tree["fidelity"]["attributes"]["class"]["count"] == 8
    page = (tmp_path / report.FILE).read_text()
    assert "no headline fidelity" in page and "nan" not in page.lower().split("base64")[0]


# --- damaged images, other places ---------------------------------------------------------------------------


def damaged(data: Path, out: Path) -> Path:
    """A copy of shards with the first held-out image damaged."""
    shutil.copytree(data, out)
    tar = next(out.glob("val-*.tar"))
    with tarfile.open(tar) as opened:
        at = next(member.offset_data for member in opened if member.name.endswith(".png"))
    content = bytearray(tar.read_bytes())
    content[at + 40] ^= 255
    tar.write_bytes(content)
    return out


def test_a_damaged_held_out_image_is_replaced_where_the_run_says_so(
    judged: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = damaged(judged[0], tmp_path / "shards")
    index, settings = Index.load(data), {"data.judge": str(judged[1])}
    with pytest.raises(InputError, match="damaged"):
        probe.probe_of(config_of(data, **settings), index, ALONE, samples=4)
    built = probe.probe_of(
        config_of(data, **settings, **{"data.on_error": "replace"}), index, ALONE, samples=4
    )
    assert built is not None and set(drawn_by(built, monkeypatch)) > {"quality/frechet", "quality/fidelity"}
    assert "takes its place" in capsys.readouterr().err


def test_a_judge_is_trained_past_a_damaged_image_if_asked_to(
    judged: tuple[Path, Path], tmp_path: Path
) -> None:
    data = damaged(judged[0], tmp_path / "shards")
    with pytest.raises(InputError, match="damaged"):
        training.train(data, epochs=1, width=8)
    _, told = training.train(data, epochs=1, width=8, on_error="replace")
    assert told["validated_on"] == len(Index.load(data).split("val"))


def test_shards_that_have_moved_are_found_and_others_refused(
    judged: tuple[Path, Path], tmp_path: Path
) -> None:
    data, folder = judged
    schema = Index.load(data).schema
    model = load_model(tiny_run.write(tmp_path / "run", 1, schema=schema, size=16))
    with pytest.raises(InputError, match="if the shards have moved: --data PLACE"):
        with_data(model)
    with pytest.raises(InputError, match="run was trained on"):
        with_data(model, str(data))
    moved = with_data(dataclasses.replace(model, fingerprint=Index.load(data).fingerprint), str(data))
    assert moved.config.data.path == data
    assert judge.load(folder, fingerprint=moved.fingerprint).schema == schema


def test_an_export_does_not_say_where_the_judge_was(tmp_path: Path) -> None:
    assert "secret" not in portable(config_of("data", **{"data.judge": "/secret/judge"}), tmp_path)


# --- who may not write --------------------------------------------------------------------------------------

Command = Callable[[list[str]], object]
COMMANDS: list[tuple[Command, list[str]]] = [
    (train_judge.main, ["RUN/shards"]),
    (evaluate.main, ["RUN"]),
    (evaluate.main, ["RUN", "--out", "RUN/out"]),
    (sweep.main, ["RUN"]),
    (points.main, ["RUN"]),
    (colors.main, ["RUN"]),
    (collapse.main, ["RUN", "--out", "RUN/guidance.md"]),
    (findings.main, ["--out", "RUN/findings.md"]),
    (export.main, ["RUN", "--out", "RUN/export"]),
    (sample.main, ["RUN", "--out", "RUN/samples/grid.png"]),
    (measure_memory.main, ["--config", "demo", "--out", "RUN/memory"]),
]


@pytest.mark.parametrize(("main", "arguments"), COMMANDS, ids=lambda value: getattr(value, "__module__", ""))
def test_a_folder_that_takes_no_files_is_told_before_any_work(
    main: Command, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run.write(tmp_path / "run", 1)
    (run / "samples").mkdir()

    def refused(**_: Any) -> None:
        raise PermissionError(13, "Permission denied", "tmp12345")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    before = sorted(run.rglob("*"))
    with pytest.raises(PermissionError) as error:
        main([word.replace("RUN", str(run)) for word in arguments])
    assert str(error.value.filename).startswith(str(run)) and sorted(run.rglob("*")) == before


def test_a_page_cannot_take_a_folders_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        flags.folder_of_page(tmp_path)
    assert flags.folder_of_page(tmp_path / "new" / "page.md") == tmp_path / "new"
