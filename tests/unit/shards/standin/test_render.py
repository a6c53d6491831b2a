"""The stand-in avatars: reproducible files, every attribute drawn, every mistake told in one line."""

from __future__ import annotations

import builtins
import io
import itertools
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbase.cli import InputError
from shards import render
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.schema import CARTOON_SET, Attribute
from shards.sources.cartoon_csv import parse_csv
from shards.standin import files as command
from shards.standin.artwork import BALD_HAIR, avatar
from shards.standin.artwork.hair_styles import HAIR_STYLES
from tests.support.tiny_set import contents

Labels = dict[str, int]
BASE: Labels = {attribute.name: 0 for attribute in CARTOON_SET} | {
    "eye_angle": 1,
    "chin_length": 1,
    "eyebrow_weight": 1,
    "eyebrow_thickness": 1,
    "facial_hair": 14,
    "face_color": 3,
    "hair_color": 2,
    "glasses": 11,
    "eye_slant": 1,
    "eyebrow_width": 1,
    "eye_eyebrow_distance": 1,
}
# What an attribute needs to be seen at all.
SETTING: dict[str, Labels] = {"glasses_color": {"glasses": 0}}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("cs*")) if p.is_file()}


def small(labels: Labels) -> np.ndarray:
    """Over white, centre crop 360, 64 x 64: what is trained on."""
    picture = Image.fromarray(avatar.render(labels))
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    cropped = white.convert("RGB").crop((70, 70, 430, 430))
    return np.asarray(cropped.resize((64, 64), Image.Resampling.LANCZOS), dtype=int)


@pytest.fixture
def cli() -> Callable[..., None]:
    return lambda *arguments: render.main([str(argument) for argument in arguments])


def test_same_seed_gives_same_bytes_for_any_number_of_jobs(tmp_path: Path) -> None:
    command.write_folder(tmp_path / "one", 70, seed=5, jobs=1, layout="flat")
    command.write_folder(tmp_path / "two", 70, seed=5, jobs=2, layout="flat")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len(files(tmp_path / "one")) == 140


def test_larger_count_extends_the_set_and_redraws_nothing(tmp_path: Path) -> None:
    assert command.write_folder(tmp_path / "set", 4, seed=1, jobs=1, layout="flat") == 4
    before = files(tmp_path / "set")
    assert command.write_folder(tmp_path / "set", 9, seed=1, jobs=1, layout="flat") == 5
    after = files(tmp_path / "set")
    assert before.items() <= after.items()
    assert command.write_folder(tmp_path / "set", 9, seed=1, jobs=1, layout="flat") == 0
    # A smaller count takes nothing away and does not shrink what the marker says.
    assert command.write_folder(tmp_path / "set", 3, seed=1, jobs=1, layout="flat") == 0
    assert json.loads((tmp_path / "set/render.json").read_text())["count"] == 9
    assert files(tmp_path / "set") == after


def test_unfinished_avatar_is_drawn_again(tmp_path: Path) -> None:
    command.write_folder(tmp_path, 3, seed=1, jobs=1, layout="flat")
    whole = files(tmp_path)
    (tmp_path / "cs1.csv").unlink()
    (tmp_path / "cs1.png").write_bytes(b"cut off")
    assert command.write_folder(tmp_path, 3, seed=1, jobs=1, layout="flat") == 1
    assert files(tmp_path) == whole
    assert not list(tmp_path.glob(".*"))


def test_another_seed_gives_other_avatars() -> None:
    assert command.labels_of(1, 0) != command.labels_of(2, 0)
    assert command.labels_of(1, 0) != command.labels_of(1, 1)


def test_labels_are_uniform_and_independent() -> None:
    rows = np.array([list(command.labels_of(0, index).values()) for index in range(4000)])
    for column, attribute in zip(rows.T, CARTOON_SET, strict=True):
        counts = np.bincount(column, minlength=attribute.variants)
        expected = len(rows) / attribute.variants
        assert abs(counts - expected).max() < 5 * expected**0.5, attribute.name
    correlation = np.corrcoef(rows.T) - np.eye(len(CARTOON_SET))
    assert abs(correlation).max() < 5 / len(rows) ** 0.5


def test_files_are_as_published(tmp_path: Path) -> None:
    command.write_folder(tmp_path, 2, seed=3, jobs=1, layout="flat")
    with Image.open(tmp_path / "cs1.png") as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGBA", (500, 500))
        alpha = np.asarray(picture)[..., 3]
    assert alpha[0].max() == 0 and alpha[:, 0].max() == 0
    assert alpha[300, 250] == 255
    assert parse_csv(tmp_path / "cs1.csv") == command.labels_of(3, 1)
    assert (tmp_path / "cs1.csv").read_text().startswith('"eye_angle", ')


def test_nested_layout_is_ten_folders(tmp_path: Path) -> None:
    command.write_folder(tmp_path / "nested", 12, seed=3, jobs=1, layout="nested")
    command.write_folder(tmp_path / "flat", 12, seed=3, jobs=1, layout="flat")
    nested, flat = files(tmp_path / "nested"), files(tmp_path / "flat")
    assert {p.name for p in (tmp_path / "nested").iterdir()} == {*map(str, range(10)), "render.json"}
    assert {Path(name).name: data for name, data in nested.items()} == flat


@pytest.mark.slow
@pytest.mark.parametrize("layout", command.LAYOUTS)
def test_tgz_is_the_folder_and_always_the_same_bytes(tmp_path: Path, layout: str) -> None:
    for place, jobs in (("a", 1), ("b", 2)):
        command.write_tgz(tmp_path / place / "set10.tgz", 40, seed=3, jobs=jobs, layout=layout)
    archive = tmp_path / "a/set10.tgz"
    assert archive.read_bytes() == (tmp_path / "b/set10.tgz").read_bytes()
    command.write_folder(tmp_path / "folder", 40, seed=3, jobs=1, layout=layout)
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        found = {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    marker = json.loads(found.pop("set10/render.json"))
    assert marker == json.loads((tmp_path / "folder/render.json").read_text())
    assert found == {f"set10/{name}": data for name, data in files(tmp_path / "folder").items()}
    assert [Path(member.name).name for member in members[1:]] == [
        f"cs{number}.{half}" for number in range(40) for half in ("csv", "png")
    ]
    assert {member.mtime for member in members} == {0}
    assert command.write_tgz(archive, 40, seed=3, jobs=1, layout=layout) == 0
    with pytest.raises(InputError, match="is not this set"):
        command.write_tgz(archive, 41, seed=3, jobs=1, layout=layout)


@pytest.mark.parametrize("layout", command.LAYOUTS)
def test_tgz_and_folder_pack_to_the_same_shards(tmp_path: Path, layout: str) -> None:
    command.write_folder(tmp_path / "set", 25, seed=3, jobs=1, layout=layout)
    command.write_tgz(tmp_path / "set.tgz", 25, seed=3, jobs=1, layout=layout)
    shards = []
    for source in ("set", "set.tgz"):
        pack(tmp_path / source, tmp_path / f"{source} packed", Settings(size=8, shard_size=10, val=0.2))
        shards.append(contents(tmp_path / f"{source} packed"))
        for names_the_source in ("index.json", "card.html"):
            del shards[-1][names_the_source]
    assert len(shards[0]) >= 5 and shards[0] == shards[1]


def test_png_is_lossless() -> None:
    pixels = avatar.render(BASE)
    with Image.open(io.BytesIO(avatar.png_bytes(pixels))) as picture:
        assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize("attribute", CARTOON_SET, ids=lambda attribute: attribute.name)
def test_every_two_variants_look_different(attribute: Attribute) -> None:
    name, variants = attribute.name, attribute.variants
    base = BASE | SETTING.get(name, {})
    large = {avatar.render(base | {name: variant}).tobytes() for variant in range(variants)}
    assert len(large) == variants
    tiny = [small(base | {name: variant}) for variant in range(variants)]
    for (i, a), (j, b) in itertools.combinations(enumerate(tiny), 2):
        changed = int((abs(a - b).max(axis=-1) > 25).sum())
        # Two bald heads, one with a glint, are the closest pair.
        assert changed >= 8, f"{name} {i} and {j}: {changed} of 4096 pixels differ by more than 25"


def test_hair_styles_are_all_different_and_a_few_are_bald() -> None:
    assert len(set(HAIR_STYLES)) == len(HAIR_STYLES) == 111
    assert 3 <= len(BALD_HAIR) <= 5


def test_avatars_stay_within_the_crop() -> None:
    """No head leaves the central 360 x 360, and of the hair at most a sliver does."""
    for hair in range(len(HAIR_STYLES)):
        alpha = avatar.render(BASE | {"hair": hair, "face_shape": 2, "chin_length": 2, "facial_hair": 2})[
            ..., 3
        ]
        outside = int((alpha > 0).sum() - (alpha[70:430, 70:430] > 0).sum())
        assert outside <= 0.002 * (alpha > 0).sum(), f"hair {hair}: {outside} pixels outside"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--out", "x", "--count", 0), "--count is 0"),
        (("--out", "x", "--count", -3), "--count is -3"),
        (("--out", "x", "--count", "many"), "invalid int value: 'many'"),
        (("--out", "x", "--count", 1, "--jobs", -1), "--jobs -1: allowed"),
        (("--out", "x", "--count", 1, "--layout", "round"), "invalid choice: 'round'"),
        (("--count", 1), "one of the arguments --out --tgz is required"),
        (("--out", "x", "--tgz", "y", "--count", 1), "not allowed with argument --out"),
    ],
)
def test_bad_arguments_are_told(cli: Callable[..., None], arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        cli(*arguments)


def test_another_set_in_the_folder_is_refused(cli: Callable[..., None], tmp_path: Path) -> None:
    cli("--out", tmp_path, "--count", 2, "--seed", 1)
    for other in (("--seed", 2), ("--seed", 1, "--layout", "nested")):
        with pytest.raises(InputError, match=r"holds a set of (seed 1, not 2|layout flat, not nested)"):
            cli("--out", tmp_path, "--count", 2, *other)
    (tmp_path / "render.json").unlink()
    with pytest.raises(InputError, match="not drawn by this command"):
        cli("--out", tmp_path, "--count", 2, "--seed", 1)


def test_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file/set"):
        done = subprocess.run(
            [sys.executable, "-m", "shards.render", "--out", str(out), "--count", "1"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert str(tmp_path / "file") in done.stderr


def test_missing_system_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *rest: object) -> object:
        if name == "skia":
            raise ImportError("libEGL.so.1: cannot open shared object file: No such file or directory")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(InputError, match="apt-get install libegl1 libgl1"):
        command.require_skia()
