"""Archives of image folders are what the folder is; what an archive claims of itself is not believed."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards.pack import main
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.sources import Asked, Sample, detect
from shards.sources.imagearchive import ImageArchive
from shards.sources.zip_members import BadZip, content, entries
from tests.support.tiny_set import TINY, Command, contents, png_of

Files = dict[str, bytes]
TABLE = b"file_name,pet\nant/1.png,cat\nbee/1.png,dog\nbee/2.png,\n"


def zip_of(path: Path, files: Files, top: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(f"{top}{name}", data)
    return path


def tar_of(path: Path, files: Files, top: str = "", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(f"{top}{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def folder_of(path: Path, files: Files) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def told(samples: list[Sample]) -> list[tuple[object, ...]]:
    return sorted((s.key, s.read_image(), sorted(s.labels.items()), s.split) for s in samples)


CLASSES = {f"{name}/{n}.png": png_of(f"{name}{n}") for name in ("ant", "bee") for n in (1, 2)}
LAYOUTS: dict[str, Files] = {
    "classes": CLASSES,
    "flat": {f"{n}.png": png_of(f"{n}") for n in range(4)},
    "splits": {f"{split}/{name}": data for split in ("train", "test") for name, data in CLASSES.items()},
    "table": {**{n: d for n, d in CLASSES.items() if n != "ant/2.png"}, "metadata.csv": TABLE},
    "odd names": {"é ü/a b.png": png_of("a"), "猫/__1.png": png_of("b"), "猫/.thumb": b"x"},
}
FORMS: dict[str, Callable[[Path, Files, str], Path]] = {
    "zip": zip_of,
    "stored zip": lambda path, files, top: zip_of(path, files, top, zipfile.ZIP_STORED),
    "tar": tar_of,
    "tar.gz": lambda path, files, top: tar_of(path, files, top, "w:gz"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("top", ["", "my set/"])
def test_an_archive_is_what_its_folder_is(tmp_path: Path, form: str, layout: str, top: str) -> None:
    files = LAYOUTS[layout]
    folder = detect(folder_of(tmp_path / "folder", files))
    archive = detect(FORMS[form](tmp_path / "data.bin", files, top))  # a suffix tells nothing
    assert isinstance(archive, ImageArchive) and archive.kind == "imagefolder"
    assert [(a.name, a.names) for a in archive.schema] == [(a.name, a.names) for a in folder.schema]
    # The table's name differs: of an archive it is the archive's.
    assert len(archive.notes) == len(folder.notes) and archive.split_by == folder.split_by
    assert told(list(archive.samples())) == told(list(folder.samples()))
    assert archive.fraction() == 1 and archive.total == folder.total
    if form.endswith("zip"):
        assert [s.key for s in archive.samples()] == [s.key for s in folder.samples()]


def test_a_zip_packs_to_the_folders_bytes(tmp_path: Path, command: Command) -> None:
    zipped = zip_of(tmp_path / "x.zip", {**CLASSES, "__MACOSX/ant/._1.png": b"x"}, "")
    code, out, _ = command(main, zipped, "--out", tmp_path / "a", *TINY)
    assert code == 0 and "1 hidden" in out and "class" in out
    pack(folder_of(tmp_path / "folder", CLASSES), tmp_path / "b", Settings(size=4, crop=8))
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert {name for name in a if a[name] != b[name]} == {"index.json", "card.html"}  # which name the source


def test_one_top_folder_is_looked_through_unless_it_says_something(tmp_path: Path) -> None:
    one = zip_of(tmp_path / "x.zip", {"ant/1.png": png_of("a")})
    assert detect(one).schema == ()
    assert [a.names for a in detect(one, asked=Asked(depth=1)).schema] == [("ant",)]
    train = detect(zip_of(tmp_path / "y.zip", {"train/ant/1.png": png_of("a")}))
    assert train.split_by == "source" and [a.names for a in train.schema] == [("ant",)]


def zip64(data: bytes) -> bytes:
    """A zip whose members have their sizes in zip64's field."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(2):
            with archive.open(f"{n}.png", "w", force_zip64=True) as file:
                file.write(data)
    return stream.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("ab/é_. ", min_size=1, max_size=9), st.binary(max_size=300), max_size=6),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.binary(max_size=40).filter(lambda data: b"PK" not in data),  # no zip's own sign
)
def test_members_are_those_of_zipfile(files: Files, method: int, before: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = zip_of(Path(name) / "x.zip", files, method=method)
        data = before + path.read_bytes()  # as self-extracting ones begin
        with zipfile.ZipFile(io.BytesIO(data)) as stock:
            wanted = [(i.filename.rstrip("/"), i.is_dir(), stock.read(i)) for i in stock.infolist()]
        stream = io.BytesIO(data)
        found = [(e, content(io.BytesIO(data), e)) for e in entries(stream, len(data))]
        assert [(e.name, e.kind == "folder", d) for e, d in found] == wanted


def test_zip64_and_large_directories(tmp_path: Path) -> None:
    data = zip64(png_of("a"))
    assert [content(io.BytesIO(data), e) for e in entries(io.BytesIO(data), len(data))] == [png_of("a")] * 2
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for n in range(66_000):  # more than 16 bits count
            archive.writestr(f"{n}.png", b"x")
    assert sum(1 for _ in entries(stream, len(stream.getvalue()))) == 66_000


def test_as_many_members_as_16_bits_count() -> None:
    """Which is what zip64 leaves there, but Python's zipfile writes no zip64 for it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for n in range(0xFFFF):
            archive.writestr(f"{n}.png", b"x")
    data = stream.getvalue()
    assert b"PK\6\7" not in data
    assert sum(1 for _ in entries(stream, len(data))) == 0xFFFF
    with pytest.raises(BadZip, match="a damaged end"):  # where the place is zip64's, there is to be one
        next(entries(io.BytesIO(patched(data, len(data) - 6, b"\xff" * 4)), len(data)))


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def linked() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.png", png_of("a"))
        link = zipfile.ZipInfo("b.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return stream.getvalue()


def test_hostile_zips(tmp_path: Path, command: Command) -> None:
    whole = zip_of(tmp_path / "x.zip", {"a.png": png_of("a"), "b.png": png_of("b")}).read_bytes()
    central = whole.index(b"PK\1\2")
    up = zip_of(tmp_path / "x.zip", {"a.png": png_of("a"), "../b.png": png_of("b")}).read_bytes()
    root = zip_of(tmp_path / "x.zip", {"/a.png": png_of("a")}).read_bytes()
    twice = whole.replace(b"b.png", b"a.png")
    lzma = zip_of(tmp_path / "x.zip", {"a.png": png_of("a")}, method=zipfile.ZIP_LZMA).read_bytes()
    cases = {
        "encrypted": (patched(whole, central + 8, b"\1"), r"a\.png: encrypted"),
        "other method": (lzma, r"a\.png: compressed by method 14; allowed"),
        "small claim": (
            patched(whole, central + 24, (40).to_bytes(4, "little")),
            r"a\.png is cut, or larger",
        ),
        "checksum": (patched(whole, central + 16, bytes(4)), r"a\.png is damaged"),
        "in each other": (patched(whole, central + 20, (1 << 20).to_bytes(4, "little")), "lie outside"),
        "up": (up, "leads out of the archive"),
        "root": (root, "leads out of the archive"),
        "link": (linked(), r"b\.png: a link or device"),
        "twice": (twice, r"a\.png: appears twice"),
        "cut": (whole[:-30], "without its directory"),
        "no directory": (whole[:central], "without its directory"),
        "no head": (patched(whole, 0, b"PK\3\5"), "neither a tar"),
        "no second head": (patched(whole, whole.index(b"PK\3\4", 4), b"xxxx"), r"no member where b\.png"),
    }
    for name, (data, wanted) in cases.items():
        (tmp_path / "x.zip").write_bytes(data)
        code, _, err = command(main, tmp_path / "x.zip", "--out", tmp_path / "out", *TINY)
        assert (code, err.count("\n")) == (2, 1) and not (tmp_path / "out").exists(), (name, err)
        with pytest.raises(InputError, match=wanted):
            list(detect(tmp_path / "x.zip").samples())


def test_sizes_are_those_of_bad_images(tmp_path: Path, command: Command) -> None:
    """Which are not read."""
    whole = zip_of(tmp_path / "x.zip", {"a.png": png_of("a"), "b.png": png_of("b")}).read_bytes()
    claim = (whole.index(b"PK\1\2") + 24, (1 << 31).to_bytes(4, "little"))
    for data, wanted in (
        (zip_of(tmp_path / "x.zip", {"a.png": bytes(40 << 20)}).read_bytes(), "41943040 bytes; at most"),
        (patched(whole, *claim), "2147483648 bytes; at most"),
        (zip_of(tmp_path / "x.zip", {"a.png": b""}).read_bytes(), "an empty file"),
    ):
        (tmp_path / "x.zip").write_bytes(data)
        code, _, err = command(main, tmp_path / "x.zip", "--out", tmp_path / "out", *TINY)
        assert code == 2 and f"a.png: {wanted}" in err and "1 bad image, in" in err
        shutil.rmtree(tmp_path / "out")


def test_hostile_tars_of_images(tmp_path: Path) -> None:
    for files, wanted in (
        ({"a.png": png_of("a"), "../b.png": b"x"}, "leads out"),
        ({"a.png": png_of("a"), "notes.doc": b"x"}, r"notes\.doc: not an image by its name"),
        ({"a.png": png_of("a"), "b/c.png": b"x"}, "mixed: a.png lies beside b/"),
    ):
        with pytest.raises(InputError, match=wanted):
            list(detect(tar_of(tmp_path / "x.tar", files)).samples())


def test_changed_while_it_is_read(tmp_path: Path) -> None:
    for make in (zip_of, tar_of):
        path = make(tmp_path / "x", LAYOUTS["flat"])
        samples = detect(path).samples()
        make(path, {**LAYOUTS["flat"], "2.png": png_of("2") + b"1"})
        with pytest.raises(InputError, match="changed while it was read"):
            list(samples)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["zip", "tar", "tar.gz"]))
def test_mutated_archives_are_told_or_read(seed: int, form: str) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        path = FORMS[form](Path(name) / "x", LAYOUTS["table"], "")
        data = bytearray(path.read_bytes() if form != "tar.gz" else gzip.decompress(path.read_bytes()))
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data) if form != "tar.gz" else gzip.compress(bytes(data), 1))
        try:
            samples = list(detect(path).samples())
        except InputError as error:
            assert str(path) in str(error)
            return
        assert samples
