"""The reader of tar headers: the members that tarfile finds, and no belief in what a header claims."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from shards.sources import archive, cartoonset, contents, detect
from shards.sources.cartoonset import CartoonArchive
from shards.sources.tar_members import BadTar, members
from tests.support.fuzz import examples
from tests.support.fuzz.hostile import header, padded

NAMES = st.text("ab/é.", min_size=1, max_size=300).map(lambda name: name.rstrip("/") or "a")
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=1100)), max_size=5),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.booleans(),
)
def test_finds_what_tarfile_finds(given: list[tuple[str, bytes, bytes]], form: int, read: bool) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as whole:
        for name, kind, data in given:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere" * 30 if form != tarfile.USTAR_FORMAT else "elsewhere"
            info.size = len(data) if info.isreg() else 0
            info.pax_headers = {"comment": "é"}
            try:
                whole.addfile(info, io.BytesIO(data))
            except ValueError:  # too long for this format
                continue
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as whole:
        expected = [(m.name, m.isreg(), m.isdir(), m.offset_data, m.size) for m in whole.getmembers()]
    stream.seek(0)
    found, contents = [], []
    for member in members(stream, len(stream.getvalue())):  # type: ignore[arg-type]
        assert stream.tell() == member.start
        contents.append(stream.read(member.size) if read else b"")
        found.append((member.name, member.kind == "file", member.kind == "folder", member.start, member.size))
    assert found == expected
    assert not read or all(len(data) == one[-1] for data, one in zip(contents, expected, strict=True))


def record(text: bytes) -> bytes:
    """A PAX header with these records, and the block after it of a plain file."""
    return header(b"x", b"%011o\0" % len(text)) + padded(text) + header(b"0", bytes(12)) + bytes(1024)


END = bytes(1024)
HOSTILE = {
    "a member of 2**70 bytes": (
        header(b"0", b"\x80\0\0\x40" + bytes(8)) + bytes(3584),
        "more than the archive",
    ),
    "a folder's header and a size of 8 GiB": (
        header(b"0", b"77777777777\0") + END,
        "more than the archive can",
    ),
    "a negative size": (header(b"0", b"\xff" * 12) + END, "a number that is none"),
    "a size that is no number": (header(b"0", b"1x345678901\0") + END, "a number that is none"),
    "2,000 chained headers": (
        header(b"x", bytes(12)) * 2000 + header(b"0", bytes(12)) + END,
        "headers in a row",
    ),
    "2,000 chained names": (
        (header(b"L", b"00000000001\0") + padded(b"x")) * 2000 + header(b"0", bytes(12)) + END,
        "more than 16 extended headers in a row",
    ),
    "a sparse member": (header(b"S", b"00000001000\0") + END, "a sparse member"),
    "a sparse size of letters": (record(b"26 GNU.sparse.size=abcdef\n"), "a sparse member"),
    "a sparse map": (record(b"25 GNU.sparse.map=0,1,2,3\n"[:26]), "sparse|damaged extended"),
    "a PAX length of 20 digits": (record(b"12345678901234567890 path=x\n"), "a damaged extended header"),
    "a PAX length of nothing": (record(b"0 path=x\n"), "a damaged extended header"),
    "a PAX length too small": (record(b"3 path=x\n"), "a damaged extended header"),
    "a PAX length too large": (record(b"99 path=x\n"), "a damaged extended header"),
    "a PAX size of letters": (record(b"12 size=abc\n"), "a size that is no number"),
    "a PAX size of 2**80": (record(b"34 size=1208925819614629174706176\n"), "a size that is no number"),
    "a PAX size of 10**18": (record(b"28 size=1000000000000000000\n"), "more than the archive can hold"),
    "1,001 records": (record(b"6 a=b\n" * 1001), "more than 1000 records"),
    "a name of 5,000 bytes": (record(b"5009 path=" + b"a" * 4998 + b"\n"), "a name of 4998 bytes"),
    "a global name": (
        header(b"g", b"00000000012\0") + padded(b"10 path=x\n") + header(b"0", bytes(12)) + END,
        "a global header that names",
    ),
    "an extended header without a member": (
        header(b"L", b"00000000001\0") + padded(b"x") + END,
        "without a member",
    ),
    "an extended header that is cut": (
        header(b"L", b"00000001000\0") + b"x",
        "more than the archive can hold|ends inside",
    ),
    "an unknown type": (header(b"M", bytes(12)) + END, "a member of unknown type"),
    "no end": (header(b"0", bytes(12)), "without the block that closes it"),
    "nothing": (b"", "without the block that closes it"),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_hostile_headers(what: str, suffix: str, tmp_path: Path) -> None:
    data, told = HOSTILE[what]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == ".tgz" else data)
    start = time.monotonic()
    with pytest.raises(InputError, match=f"truncated or damaged archive.*({told})"):
        list(detect(path, "cartoonset").samples())
    assert time.monotonic() - start < 5


@given(st.binary(max_size=1500))
@settings(max_examples=300, deadline=None)
def test_any_blocks_are_members_or_told(data: bytes) -> None:
    for one in (data, header(b"x", b"%011o\0" % len(data)) + padded(data) + header(b"0", bytes(12)) + END):
        with suppress(BadTar):
            assert all(m.start + m.size <= len(one) for m in members(io.BytesIO(one), len(one)))  # type: ignore


def half(number: int, name: bytes = b"") -> bytes:
    """A CSV whose image does not come."""
    name = name or b"d/cs%d.csv" % number
    long = header(b"L", b"%011o\0" % len(name)) + padded(name) if len(name) > 100 else b""
    return long + header(b"0", b"%011o\0" % len(examples.CSV), name[:100]) + padded(examples.CSV)


def halves() -> Iterator[bytes]:
    for number in range(100_000):
        yield half(number)


def long_names() -> Iterator[bytes]:
    for number in range(10_000):
        yield half(number, (b"%d/" % number).ljust(4000, b"a") + b"/cs%d.csv" % number)


def images() -> Iterator[bytes]:
    zeros = bytes(32 << 20)
    for number in range(40):
        yield header(b"0", b"%011o\0" % len(zeros), b"d/cs%d.png" % number) + zeros


def behind_the_end() -> Iterator[bytes]:
    yield examples.tar(examples.cartoons())
    for _ in range(1100):
        yield bytes(1 << 20)


BOMBS = {
    halves: "files wait for their CSV or image",
    long_names: "files wait for their CSV or image",
    images: "MiB of images wait",
    behind_the_end: "more than 64 MiB behind its end",
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_gzip_bombs_stay_below_a_gibibyte(bomb, tmp_path: Path) -> None:
    """Of some hundred KB of names, images or zeros, and in a process that may not take more."""
    path = tmp_path / "x.tgz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for piece in bomb():
            file.write(piece)
    assert path.stat().st_size < 12 << 20
    code = (
        "import resource, sys; from pathlib import Path; from shards.sources import detect\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from diffbase.cli import run\n"
        "run(lambda: list(detect(Path(sys.argv[1]), 'cartoonset').samples()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120, cwd=REPOSITORY
    )
    assert done.returncode == 2 and BOMBS[bomb] in done.stderr and done.stderr.count("\n") == 1


def test_counts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(examples.tar(examples.cartoons()))
    assert len(list(CartoonArchive(path).samples())) == 2
    for room, name, told in (
        (cartoonset, "SAMPLES_CAP", "more than 1 samples"),
        (archive, "MEMBERS_CAP", "more than 1 members"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(room, name, 1)
            with pytest.raises(InputError, match=told):
                list(CartoonArchive(path).samples())


def test_a_kind_is_found_out_by_the_head_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(header(b"5", bytes(12), b"d") * 1500 + examples.tar(examples.cartoons()))
    assert len(list(detect(path).samples())) == 2
    monkeypatch.setattr(contents, "HEAD_CAP", 4000)
    assert not contents.look(path).files
    with pytest.raises(InputError, match="an empty tar"):
        detect(path)
    assert len(list(detect(path, "cartoonset").samples())) == 2
    path.write_bytes(examples.tar([(".hidden", bytes(5000)), ("a.png", b"1")]))
    assert not contents.look(path).files
    monkeypatch.setattr(contents, "HEAD_CAP", 8000)
    assert [str(file) for file in contents.look(path).files] == ["a.png"]


def test_sums_of_signed_bytes() -> None:
    """Some old programs made them."""
    name = "é.png".encode()
    block = header(b"0", bytes(12), name)
    signed = sum(b - 256 * (b > 127) for b in block[:148] + b" " * 8 + block[156:])
    old = block[:148] + b"%06o\0 " % signed + block[156:] + END
    assert [m.name for m in members(io.BytesIO(old), len(old))] == ["é.png"]  # type: ignore[arg-type]
    with pytest.raises(BadTar, match="checksum"):
        list(members(io.BytesIO(block[:1] + b"x" + block[2:] + END), 2048))  # type: ignore[arg-type]
