"""The measures against references: intervals, distances, the judge's slot, neighbours, the page."""

from __future__ import annotations

import json
import re
import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from PIL import Image

from diffbase.cli import InputError
from diffcore.config.tree import Data, Sampling
from diffcore.engine.ranks import World
from diffcore.evaluation import train_judge
from diffcore.evaluation.judging import judge, training
from diffcore.evaluation.judging.intervals import mean_of_shares, paired_difference, wilson
from diffcore.evaluation.quality import distances, looks, probe, report
from diffcore.evaluation.quality import drawing as draws
from diffcore.evaluation.quality import measure as quality
from diffcore.evaluation.studies import cells, curve
from shards import pack
from shards.read import Batch, ShardReader
from shards.schema import CARTOON_SET, UNKNOWN, Attribute
from shards.standin.visible import visible
from shards.table import Index

ALONE = World(0, 1, 0, torch.device("cpu"))
COLORS = {"amber": (230, 160, 40), "blue": (40, 60, 200), "<b>green</b>": (30, 160, 70)}


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy coloured squares on white, packed at 16 x 16."""
    source, out = tmp_path_factory.mktemp("squares"), tmp_path_factory.mktemp("packed") / "shards"
    random = np.random.default_rng(0)
    for number, color in enumerate(COLORS.values()):
        (source / f"kind{number}").mkdir()
        for i in range(40):
            pixels = np.full((16, 16, 3), 255, np.uint8)
            noisy = np.array(color) + random.normal(0, 12, (10, 10, 3))
            pixels[3:13, 3:13] = noisy.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(source / f"kind{number}" / f"p{i}.png")
    pack.main([str(source), "--out", str(out), "--size", "16", "--jobs", "1", "--val", "0.3"])
    return out


@pytest.fixture(scope="module")
def trained(squares: Path) -> judge.Judge:
    torch.manual_seed(0)
    train_judge.main([str(squares), "--epochs", "12", "--width", "8", "--threads", "1"])
    return judge.load(squares / "judge", Index.load(squares))


def held_out(data: Path) -> Batch:
    with ShardReader(data, "val", order="sequential") as reader:
        return reader.read(np.arange(len(reader)))


# --- intervals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (7, 10), (10, 10), (1, 3000), (1500, 3000)])
def test_wilson_is_scipys(hits: int, count: int) -> None:
    ours = wilson(hits, count)
    theirs = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_of_nothing_and_of_nonsense() -> None:
    assert np.isnan(wilson(0, 0).share)
    with pytest.raises(ValueError, match="no share"):
        wilson(4, 3)


def test_the_mean_of_shares_covers_the_truth() -> None:
    random, truth, inside = np.random.default_rng(0), np.array([0.9, 0.5, 0.7]), 0
    for _ in range(400):
        bad = random.random((300, 1)) < 0.2  # a bad image misses everything: its attributes hang together
        hit = (random.random((300, 3)) < truth) & ~bad
        mean = mean_of_shares(hit, random.random((300, 3)) < [1, 1, 0.5])
        inside += mean.low <= 0.8 * truth.mean() <= mean.high
    assert 0.92 <= inside / 400 <= 0.98


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    random = np.random.default_rng(1)
    hit, counted = random.random((500, 2)) < 0.8, np.ones((500, 2), bool)
    other = hit.copy()
    other[:5] = ~other[:5]
    difference, alone = paired_difference(hit, other, counted), mean_of_shares(hit, counted)
    assert difference.mean == pytest.approx(hit.mean() - other.mean())
    assert difference.high - difference.low < (alone.high - alone.low) / 2


# --- distances ----------------------------------------------------------------------------------------------


def test_frechet_is_scipys_on_samples() -> None:
    random = np.random.default_rng(2)
    a = random.normal(size=(400, 12)) @ random.normal(size=(12, 12))
    b = random.normal(size=(300, 12)) @ random.normal(size=(12, 12)) + 1
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert distances.frechet(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_approaches_the_closed_form_of_known_gaussians() -> None:
    # N(0, I) and N(m, diag(s^2)): |m|^2 + sum (s - 1)^2
    random, m, s = np.random.default_rng(3), np.array([1.0, -2, 0, 0.5]), np.array([0.5, 1, 2, 1.5])
    real, drawn = random.normal(size=(40_000, 4)), m + s * random.normal(size=(40_000, 4))
    assert distances.frechet(real, drawn) == pytest.approx((m**2).sum() + ((s - 1) ** 2).sum(), rel=0.02)


def test_the_distances_of_like_sets_are_nearly_nothing() -> None:
    random = np.random.default_rng(4)
    a, b = random.normal(size=(2, 1000, 8))
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-5)
    assert abs(distances.kernel(a, b)) < 0.01 < distances.kernel(a, b + 0.5)
    assert distances.kernel(a, b) == distances.kernel(a, b)
    with pytest.raises(ValueError, match="two images or more"):
        distances.frechet(a, b[:1])


# --- the judge ----------------------------------------------------------------------------------------------


def test_hidden_attributes_do_not_count() -> None:
    labels = np.zeros((4, len(CARTOON_SET)), np.int64)
    names = [a.name for a in CARTOON_SET]
    labels[1, names.index("hair")] = 107  # bald
    labels[2, names.index("glasses")] = 11  # none
    labels[3, names.index("hair")] = UNKNOWN
    seen = visible(CARTOON_SET, labels)
    assert seen[0].all() and [names[i] for i in np.flatnonzero(~seen[1])] == ["hair_color"]
    assert [names[i] for i in np.flatnonzero(~seen[2])] == ["glasses_color"]
    assert (seen[3] == seen[1]).all()
    assert visible((Attribute("class", 3),), labels[:, :1]).all()


def test_the_judge_learns_real_images_and_says_how_well(trained: judge.Judge, squares: Path) -> None:
    record = json.loads((squares / "judge" / "judge.json").read_text())
    assert record["mean"]["mean"] == 1
    assert record["fingerprint"] == Index.load(squares).fingerprint
    assert record["readable"] == ["class"]
    confusion = np.array(record["confusion"]["class"])
    assert confusion.sum() == record["accuracy"]["class"]["count"] == len(held_out(squares).images)
    assert (confusion == np.diag(np.diag(confusion))).all()


def test_shuffled_labels_give_chance(trained: judge.Judge, squares: Path) -> None:
    real, random = held_out(squares), np.random.default_rng(0)
    reading = trained.read(real.images)
    shuffled = [
        trained.score(real.images, random.permutation(real.labels), reading).mean.mean for _ in range(200)
    ]
    assert np.mean(shuffled) == pytest.approx(1 / 3, abs=0.05)


class RealImages:
    """What a run is for ``measure``, with held-out images in the generator's place."""

    def __init__(self, data: Path, real: Batch) -> None:
        model = SimpleNamespace(conditional=True)
        self.config = SimpleNamespace(data=Data(path=data), model=model)
        self.schema, self.step, self.real = Index.load(data).schema, 0, real

    def draw(self, labels_BA, sampling, seed, batch, positions):  # type: ignore[no-untyped-def]
        return self.real.images[np.array(positions, int) % len(self.real.images)]


def test_real_images_in_the_generators_slot_score_as_the_judge(
    trained: judge.Judge, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = held_out(squares)
    # One label in four is wrong now, so that the judge's accuracy is not simply 100 %.
    labels = np.where(np.arange(len(real.labels))[:, None] % 4, real.labels, (real.labels + 1) % 3)
    real = Batch(real.images, labels, real.positions, real.keys)
    monkeypatch.setattr(draws, "asked_labels", lambda model, count, seed: np.resize(labels, (count, 1)))
    measured = quality.measure(
        RealImages(squares, real), trained, Sampling(), ALONE, samples=len(labels)
    ).figures  # type: ignore[arg-type]
    expected = trained.score(real.images, labels)
    fidelity = measured["fidelity"]
    assert fidelity["mean"] == expected.mean.as_dict()
    assert fidelity["attributes"]["class"]["share"] == expected.shares["class"].share < 0.8
    # And they are as near to themselves, and as clean, as can be.
    assert measured["distances"]["frechet"] == pytest.approx(0, abs=1e-3)
    assert measured["background"]["clean_images"]["share"] == 1
    assert measured["neighbours"]["median"] == measured["neighbours"]["held_out_median"]


def test_unknown_labels_of_real_images_count_for_nothing(
    trained: judge.Judge, squares: Path, tmp_path: Path
) -> None:
    """The ceiling is over the known ones, and no group of "the same labels" is made of the others."""
    real = held_out(squares)
    known = np.arange(len(real.labels)) % 3 > 0
    labels = np.where(known[:, None], real.labels, UNKNOWN)
    some = Batch(real.images, labels, real.positions, real.keys)
    run: Any = RealImages(squares, some)
    run.schema = [Attribute("class", len(COLORS), tuple(COLORS))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "held_out_samples", lambda config, count: some)
        measured = quality.measure(run, trained, Sampling(), ALONE, samples=12)
        patch.setattr(quality, "held_out_samples", lambda config, count: real)
        whole = quality.measure(run, trained, Sampling(), ALONE, samples=12)
    ceiling = measured.figures["fidelity"]["attributes"]["class"]["judge_on_real_images"]
    assert (ceiling["hits"], ceiling["count"]) == (known.sum(), known.sum())
    alone = looks.thumbnails(real.images[known])
    wanted = [looks.spread(alone[real.labels[known, 0] == v]) for v in range(3)]
    assert measured.figures["diversity"]["real_one_condition"] == pytest.approx(np.mean(wanted))
    for name in ("distances", "neighbours", "background", "variety"):  # these look at images alone
        assert measured.figures[name] == whole.figures[name]
    report.write(tmp_path / report.FILE, "gaps", measured, run.schema)
    assert "unknown" not in (tmp_path / report.FILE).read_text()  # no variant is called so


def test_a_judge_of_other_shards_or_with_other_bytes_is_refused(
    trained: judge.Judge, squares: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="learned from other shards"):
        judge.load(squares / "judge", fingerprint="0" * 64)
    with pytest.raises(InputError, match="no judge here"):
        judge.load(tmp_path)
    for name in ("judge.json", "judge.safetensors"):
        (tmp_path / name).write_bytes((squares / "judge" / name).read_bytes())
    data = bytearray((tmp_path / "judge.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "judge.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        judge.load(tmp_path)
    (tmp_path / "judge.json").write_text("[]")
    with pytest.raises(InputError, match="not a judge's record"):
        judge.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": [[1]]}, "not a judge's record: size"),
        ({"width": 1_000_000}, "not a judge's record: width"),
        ({"width": 4096}, "not this judge's weights"),
        ({"size": 8192}, "not this judge's weights"),
        ({"readable": ["nose"]}, "not of the attributes in schema"),
        ({"sha256": "0"}, "damaged"),
        ({"version": 9}, "version 9, this code reads 1 to 2"),
        ({"accuracy": {}}, "not of the attributes in schema"),
    ],
    ids=str,
)
def test_a_record_that_the_weights_deny_takes_no_memory(
    trained: judge.Judge, squares: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    record = json.loads((squares / "judge" / "judge.json").read_text())
    shutil.copy(squares / "judge" / "judge.safetensors", tmp_path)
    (tmp_path / "judge.json").write_text(json.dumps(record))
    assert judge.load(tmp_path).readable == trained.readable
    (tmp_path / "judge.json").write_text(json.dumps(record | change))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=told):
        judge.load(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_data_without_labels_or_held_out_images_has_no_judge(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "bare" / "a.png")
    pack.main([str(tmp_path / "bare"), "--out", str(tmp_path / "p"), "--size", "16", "--jobs", "1"])
    with pytest.raises(InputError, match="no labels"):
        training.train(tmp_path / "p")
    for name in ("a", "b"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "classes" / name / "x.png")
    pack.main(
        [str(tmp_path / "classes"), "--out", str(tmp_path / "q"), "--size", "16", "--jobs", "1", "--val", "0"]
    )
    with pytest.raises(InputError, match="no validation split"):
        training.train(tmp_path / "q")


@pytest.mark.parametrize("size", [8, 12, 16, 28, 64, 96, 256])
def test_the_judges_network_takes_any_size(size: int) -> None:
    schema = (Attribute("class", 3), Attribute("other", 2))
    net = judge.JudgeNet(schema, size, width=8)
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 5)


# --- looks --------------------------------------------------------------------------------------------------


def test_the_nearest_image_is_found_across_shares() -> None:
    random = np.random.default_rng(5)
    training = random.integers(0, 256, (50, 32, 32, 3), np.uint8)
    samples = training[[7, 42]].copy()
    samples[:, :4, :4] ^= 3
    nearest = looks.Nearest.to(looks.thumbnails(samples))
    for first in (0, 25):
        places = np.arange(first, first + 25)
        nearest.look(looks.thumbnails(training[places]), places)
    assert nearest.place_N.tolist() == [7, 42]
    exact = np.sqrt(((looks.thumbnails(samples) - looks.thumbnails(training[[7, 42]])) ** 2).mean(1))
    np.testing.assert_allclose(nearest.distance_N, exact, atol=0.05)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copy_of_what_was_learned_in_a_mirror_is_found(mirrored: bool) -> None:
    training = np.random.default_rng(7).integers(0, 256, (20, 20, 20, 3), np.uint8)

    class Reader:
        def __len__(self) -> int:
            return len(training)

        def read(self, places: Any) -> Any:
            return SimpleNamespace(images=training[places])

    copies, alone = training[[3, 11], :, ::-1], World(0, 1, 0, torch.device("cpu"))
    found = quality._nearest(Reader(), copies, copies[:1], alone, mirrored)  # type: ignore[arg-type]
    for nearest, places in zip(found, ([3, 11], [3]), strict=True):
        assert (nearest.distance_N < 1).all() == mirrored
        assert nearest.place_N.tolist() == places or not mirrored


def test_the_background_is_where_all_real_images_agree() -> None:
    random = np.random.default_rng(6)
    real = np.full((20, 8, 8, 3), 255, np.uint8)
    real[:, 2:6, 2:6] = random.integers(0, 256, (20, 4, 4, 3))
    background = looks.Background.of([real[:10], real[10:]])
    assert background.share == pytest.approx(1 - 16 / 64)
    speckled = real.copy()
    speckled[0, 0, :3] = 0
    assert background.clean(speckled)[:2].tolist() == [pytest.approx(45 / 48), 1]


def test_variety_counts_what_is_in_use() -> None:
    assert looks.effective_number(np.array([3, 3, 3])) == pytest.approx(1)
    assert looks.effective_number(np.arange(7)) == pytest.approx(7)


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_escaped(trained: judge.Judge, squares: Path, tmp_path: Path) -> None:
    real = held_out(squares)
    figures = quality.measure(RealImages(squares, real), trained, Sampling(), ALONE, samples=30)  # type: ignore[arg-type]
    path = tmp_path / report.FILE
    report.write(path, "run <script>", figures, [Attribute("class", len(COLORS), tuple(COLORS))])
    page = path.read_text()
    assert "<script" not in page and "<b>green" not in page and "&lt;b&gt;green" in page
    sources = re.findall(r'(?:src|href)="([^"]{,22})', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    for heading in ("Fidelity by attribute", "What every variant", "Worst misses", "Nearest training"):
        assert heading in page


def test_pictures_without_labels_are_measured_too(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "bare" / f"p{i}.png")
    out = tmp_path / "packed"
    pack.main([str(tmp_path / "bare"), "--out", str(out), "--size", "16", "--jobs", "1", "--val", "0.3"])
    run = RealImages(out, held_out(out))
    run.config.model.conditional = False
    measured = quality.measure(run, None, Sampling(guidance=1), ALONE, samples=6)  # type: ignore[arg-type]
    assert set(measured.figures) >= {"diversity", "neighbours"} and "fidelity" not in measured.figures
    report.write(tmp_path / report.FILE, "landscapes", measured, ())
    assert "Without labels there is no fidelity" in (tmp_path / report.FILE).read_text()


def test_a_missing_torchmetrics_is_said_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    nothing: Any = None  # that it is not looked at is the point
    line = r"measuring distances needs torchmetrics: pip install 'diffcore\[evaluate\]'"
    for begin in (
        lambda: quality.measure(nothing, nothing, nothing, nothing, samples=2),
        lambda: cells.Table(nothing, nothing, nothing, nothing, 2),
        lambda: curve.measure(nothing, nothing, None, samples=2, seed=1, raw=False),
        lambda: probe.Probe(nothing, nothing, nothing, nothing, 2),
    ):
        with pytest.raises(InputError, match=line):
            begin()
