"""Folders and archives as sources: the same samples, or refused in one line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards.pack import main
from shards.packing.packer import pack
from shards.sources import SOURCES, cartoonset, detect
from shards.sources.cartoon_csv import format_csv
from shards.sources.cartoonset import CartoonArchive, CartoonFolder
from shards.table import Index
from tests.support.tiny_set import TINY, Command, keys_of, labels_of, png_of


def archive_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def files_of(source: Path) -> list[tuple[str, bytes]]:
    return [(f"set/{path.name}", path.read_bytes()) for path in sorted(source.iterdir())]


def members_of(folder: Path, split: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for shard in Index.load(folder).split(split).shards:
        with tarfile.open(folder / shard.name) as archive:
            found |= {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("name", ["set.tgz", "set.tar", "set.tar.gz"])
@pytest.mark.parametrize("apart", [False, True])
def test_archive(make_source, tiny, tmp_path: Path, name: str, apart: bool) -> None:
    source = make_source(tmp_path / "source", range(12))
    files = files_of(source)
    if apart:
        files.sort(key=lambda file: file[0].endswith(".csv"))
    archive = archive_of(tmp_path / name, [("set/render.json", b"{}"), ("set/._cs1.png", b"junk"), *files])
    pack(archive, tmp_path / "out", tiny(), jobs=1)
    pack(source, tmp_path / "folder", tiny(), jobs=1)
    a, b = Index.load(tmp_path / "out"), Index.load(tmp_path / "folder")
    for split in ("train", "val"):
        assert sorted(keys_of(a.folder, split)) == sorted(keys_of(b.folder, split))
        assert members_of(a.folder, split) == members_of(b.folder, split)
    assert pack(archive, tmp_path / "out", tiny()).complete_before


def test_bad_archives(make_source, tmp_path: Path, command: Command) -> None:
    files = files_of(make_source(tmp_path / "source", range(3)))
    whole = archive_of(tmp_path / "whole.tgz", files).read_bytes()
    plain = gzip.decompress(whole)
    link = tarfile.TarInfo("cs9.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("cs9.png")
    device.type = tarfile.CHRTYPE
    pending = archive_of(tmp_path / "x.tar", files[:-1]).read_bytes()
    # (file name, bytes, what is told)
    cases: list[tuple[str, bytes, str]] = [
        ("cut.tgz", whole[:-20], "truncated or damaged archive"),
        ("cut.tar", plain[: len(plain) // 2], "truncated or damaged|ends inside"),
        ("boundary.tar", plain[: tar_end(plain)], "truncated or damaged archive"),
        ("flip.tgz", whole[:-8] + b"\0\0\0\0" + whole[-4:], "truncated or damaged archive"),
        ("header.tar", flipped_header(plain), "truncated or damaged archive"),
        ("empty.tar", b"", "truncated or damaged archive"),
        ("junk.tgz", b"junk" * 300, "truncated or damaged archive"),
        ("nothing.tar", archive_of(tmp_path / "y.tar", []).read_bytes(), "an empty tar"),
        ("half.tar", pending, r"cs2\.csv: has no \.png"),
        ("up.tar", archive_of(tmp_path / "y.tar", [("../cs1.png", b"1")]).read_bytes(), "leads out"),
        ("root.tar", archive_of(tmp_path / "y.tar", [("/cs1.png", b"1")]).read_bytes(), "leads out"),
        ("twice.tar", archive_of(tmp_path / "y.tar", files + files).read_bytes(), "appears twice"),
        ("link.tar", link.tobuf() + bytes(1024), "a link or device"),
        ("device.tar", device.tobuf() + bytes(1024), "a link or device"),
    ]
    for name, data, told in cases:
        (tmp_path / name).write_bytes(data)
        code, out, err = command(main, tmp_path / name, "--out", tmp_path / "out", *TINY)
        assert (code, err.count("\n")) == (2, 1) and out.count("\n") <= 1, (name, err)
        assert re.search(told, err) and name in err, (name, err)
        assert not (tmp_path / "out").exists(), name


def tar_end(plain: bytes) -> int:
    """Where the last member's header begins: cut there, every member before it is whole."""
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        return archive.getmembers()[-1].offset


def flipped_header(plain: bytes) -> bytes:
    end = tar_end(plain)
    return plain[:end] + bytes([plain[end] ^ 1]) + plain[end + 1 :]


def test_archive_with_extended_headers(tmp_path: Path) -> None:
    """Long names and comments are members of their own, as GNU tar --posix and bsdtar write them."""
    (tmp_path / "x.tar").write_bytes(MUTABLE_TAR)
    (sample,) = CartoonArchive(tmp_path / "x.tar").samples()
    assert (sample.key, sample.image, sample.labels) == ("cs1", png_of("cs1"), labels_of("cs1"))


def test_images_that_wait_are_bounded(make_source, tmp_path: Path, monkeypatch) -> None:
    files = files_of(make_source(tmp_path / "source", range(12)))
    monkeypatch.setattr(cartoonset, "PENDING_CAP", 3 * max(len(data) for _, data in files))
    together = archive_of(tmp_path / "together.tar", files)
    assert len(list(CartoonArchive(together).samples())) == 12
    apart = archive_of(tmp_path / "apart.tar", sorted(files, key=lambda file: file[0].endswith(".csv")))
    with pytest.raises(InputError, match="MiB of images wait for their CSV"):
        list(CartoonArchive(apart).samples())


@pytest.mark.parametrize("cap", ["IMAGE_CAP", "CSV_CAP"])
def test_large_files_are_refused(make_source, tmp_path: Path, monkeypatch, cap: str) -> None:
    source = make_source(tmp_path / "source", range(3))
    archive = archive_of(tmp_path / "set.tar", files_of(source))
    monkeypatch.setattr(cartoonset, cap, 100)
    readers = [lambda: list(CartoonArchive(archive).samples())]
    if cap == "CSV_CAP":  # an image in a folder is a bad one, which the packer tells
        readers.append(lambda: list(CartoonFolder(source).samples()))
    for read in readers:
        with pytest.raises(InputError, match="at most 100 are allowed"):
            read()


def test_long_extended_header_is_refused(make_source, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("cs1.png")
        member.pax_headers = {"comment": "x" * (1 << 20)}
        archive.addfile(member)
    with pytest.raises(InputError, match="an extended header of more than 1 MiB"):
        list(CartoonArchive(tmp_path / "x.tar").samples())


@pytest.mark.parametrize("place", ["cs7.png", "cs7.csv", "7"])
def test_links_that_lead_out_are_refused(make_source, tmp_path: Path, place: str) -> None:
    source, outside = make_source(tmp_path / "source", range(3)), make_source(tmp_path / "outside", [7])
    assert len(list(CartoonFolder(source).samples())) == 3
    (source / place).symlink_to(outside / place if place != "7" else outside)
    with pytest.raises(InputError, match=r"leads out of .*source; pack a copy without links"):
        CartoonFolder(source)


def test_key_in_two_folders(make_source, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", range(12), nested=True)
    make_source(source / "3", [5])
    with pytest.raises(InputError, match=r"cs5 is in .* too; keys must be unique"):
        CartoonFolder(source)


def test_halves_in_two_folders(make_source, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", range(12), nested=True)
    (source / "5" / "cs5.csv").rename(source / "3" / "cs5.csv")
    with pytest.raises(InputError, match=r"cs5\.png: its cs5\.csv lies in"):
        CartoonFolder(source)


def test_fraction_grows_to_one(make_source, tmp_path: Path) -> None:
    # More than the 10,240 bytes that are read at a time.
    archive = CartoonArchive(archive_of(tmp_path / "x.tar", files_of(make_source(tmp_path / "a", range(60)))))
    shares = [archive.fraction() for _ in archive.samples()]
    assert shares == sorted(shares) and shares[0] < 0.5 and archive.fraction() == 1


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_archive_is_told_or_read(data: st.DataObject) -> None:
    whole = MUTABLE_TAR
    place = data.draw(st.integers(0, len(whole) - 1))
    noise = data.draw(st.binary(max_size=8))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.tar"
        path.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
        try:
            keys = [sample.key for sample in CartoonArchive(path).samples()]
        except InputError as error:
            assert "x.tar" in str(error)
            return
        assert keys


def _mutable_tar() -> bytes:
    stream = io.BytesIO()
    table = format_csv(labels_of("cs1")).encode()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, payload in (("a" * 120 + "/cs1.png", png_of("cs1")), ("a" * 120 + "/cs1.csv", table)):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            info.pax_headers = {"comment": "é"}
            archive.addfile(info, io.BytesIO(payload))
    return stream.getvalue()


MUTABLE_TAR = _mutable_tar()


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_spellings_of_cartoon_set(make_source, tmp_path: Path, form: str) -> None:
    """Upper case, other folders and images, byte order marks, line ends, spaces at the end: all are read."""
    plain = make_source(tmp_path / "plain", range(12))
    files = dict(sorted((path.name, path.read_bytes()) for path in plain.iterdir()))
    odd: dict[str, bytes] = {"LICENSE": b"", ".DS_Store": b"", "sub/notes.txt": b""}
    for number in range(12):
        table = files[f"cs{number}.csv"]
        table = [b"\xef\xbb\xbf" + table, table.replace(b"\n", b"\r\n"), table + b"   \n \t", table.rstrip()][
            number % 4
        ]
        image, end = (("PNG", "CSV"), ("png", "csv"))[number % 2]
        folder = ("", "10/", "train/deep/")[number % 3]
        odd |= {f"{folder}cs{number}.{image}": files[f"cs{number}.png"], f"{folder}cs{number}.{end}": table}
    path = tmp_path / "odd"
    if form == "folder":
        for name, data in odd.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif form == "tar":
        archive_of(path, list(odd.items()))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in odd.items():
                archive.writestr(name, data)
    source = detect(path)
    found = {s.key: (s.read_image(), s.labels) for s in source.samples()}
    assert source.kind == "cartoonset"
    assert found == {s.key: (s.read_image(), s.labels) for s in CartoonFolder(plain).samples()}
    assert source.notes == ("3 other files passed over (.DS_Store, LICENSE, notes.txt)",)


@pytest.mark.parametrize("name", ["cs1.jpg", "extra.csv", "10/cs99.PNG", "x/y/a.gif"])
@pytest.mark.parametrize("form", ["folder", "tar"])
def test_nothing_of_cartoon_set_is_passed_over(make_source, tmp_path: Path, name: str, form: str) -> None:
    folder = make_source(tmp_path / "set", range(3))
    if name == "cs1.jpg":  # another one of the same name
        told = r"cs1 (is in .* too|appears twice)"
    else:
        told = rf"{Path(name).name}: has no .*(csv|png)"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(format_csv(labels_of("a")).encode() if name.endswith("csv") else png_of("a"))
    path = folder
    if form == "tar":
        files = [
            (str(p.relative_to(folder)), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()
        ]
        path = archive_of(tmp_path / "x.tar", files)
    with pytest.raises(InputError, match=told):
        list(detect(path).samples())


def test_names_that_are_read_are_not_passed_over(make_source, tmp_path: Path) -> None:
    names = ("set/render.json", b'{"names": {"eye_lid": ["open", "half"]}}')
    files = files_of(make_source(tmp_path / "source", range(3)))
    for some, notes in (([names, *files], 0), ([*files, names], 1)):
        source = detect(archive_of(tmp_path / "x.tar", some))
        assert len(list(source.samples())) == 3 and len(source.notes) == notes
        assert any(attribute.names for attribute in source.schema) == (notes == 0)


@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_zip_has_its_names_anywhere(make_source, tmp_path: Path, place: int) -> None:
    files = files_of(make_source(tmp_path / "source", range(3)))
    files.insert(place, ("set/render.json", b'{"names": {"eye_lid": ["open", "half"]}}'))
    files.insert(0, ("set/old/render.json", b"not JSON"))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in files:
            archive.writestr(name, data)
    source = detect(tmp_path / "x.zip")
    assert len(list(source.samples())) == 3
    assert source.notes == ("1 other file passed over (render.json)",)
    assert [a.names for a in source.schema if a.names] == [("open", "half")]


def test_what_is_not_cartoon_set_is_not_taken_for_it(make_source, tmp_path: Path, command: Command) -> None:
    images = [(f"{n}.png", png_of(f"{n}")) for n in range(3)]
    table = ("metadata.csv", b"file_name,eye_angle\n0.png,1\n1.png,2\n2.png,1\n")
    named_so = ("metadata.csv", b"hair,file_name,age\n1,0.png,30\n2,1.png,40\n1,2.png,30\n")
    samples = [*images, *((f"{n}.json", b'{"a": 1}') for n in range(3))]
    for files, kind in (
        (images, "imagefolder"),
        ([*images, table], "imagefolder"),
        ([*images, named_so], "imagefolder"),
        (samples, "webdataset"),
        (files_of(make_source(tmp_path / "source", range(3))), "cartoonset"),
    ):
        assert detect(archive_of(tmp_path / "x.tar", files)).kind == kind
        assert detect(archive_of(tmp_path / "x.tgz", files).rename(tmp_path / "no suffix")).kind == kind
    other = [(name, b"a,b\n1,2\n" if name.endswith("csv") else data) for name, data in files]
    with pytest.raises(InputError, match=r"cs0\.csv: not an image by its name"):
        detect(archive_of(tmp_path / "x.tar", other))
    with pytest.raises(InputError, match=r'cs0\.csv, line 1: expected "name", variant'):
        list(detect(archive_of(tmp_path / "x.tar", other), "cartoonset").samples())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"hello", "neither a tar .*, a zip nor parquet"),
        (b"", "neither a tar .*, a zip nor parquet"),
        (bytes(1024), "an empty tar"),
        (bz2.compress(b"x"), "compressed by bzip2; allowed: tars, plain or gzipped"),
        (lzma.compress(b"x"), "compressed by xz; allowed"),
        (gzip.compress(b"x", mtime=0), "truncated or damaged archive"),
        (b"PK\5\6" + bytes(18), "an empty zip"),
    ],
)
def test_what_is_not_known_is_said(tmp_path: Path, command: Command, data: bytes, told: str) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    code, out, err = command(main, tmp_path / "x.bin", "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1) and re.search(told, err), err


def test_what_is_seen_and_allowed_is_said(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("b.doc", "a.txt"):
        (tmp_path / "set" / name).touch()
    archive = archive_of(tmp_path / "x.zip", [("in/b.doc", b"x"), ("in/a.txt", b"x")])
    for path, seen in (
        (tmp_path / "set", "found a.txt, b.doc"),
        (archive, "an archive of in/a.txt, in/b.doc"),
    ):
        with pytest.raises(InputError, match=re.escape(f"({seen}); allowed: ")) as error:
            detect(path)
        assert all(f"({kind})" in str(error.value) for kind in SOURCES)
        with pytest.raises(InputError, match=r"can be packed as cifar10|is missing"):
            list(detect(path, "cifar10").samples())
