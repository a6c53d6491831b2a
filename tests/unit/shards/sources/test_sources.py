"""Folders and archives as sources: the same samples, or refused in one line."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards.pack import main
from shards.packing.packer import pack
from shards.sources import cartoonset
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
    for read in (lambda: CartoonFolder(source), lambda: list(CartoonArchive(archive).samples())):
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
