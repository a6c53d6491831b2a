"""Bad images: all are named in one run, which stops or leaves them out, whatever was packed before."""

from __future__ import annotations

import errno
import json
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards.checking.verifier import problems
from shards.pack import main
from shards.packing import bad, packer
from shards.packing.bad import FILE, OnBad, left_out
from shards.packing.journal import JOURNAL
from shards.packing.packer import pack
from shards.packing.plan import split_of
from shards.sources import Sample, detect
from shards.table import Index
from shards.verify import main as verify
from tests.support.tiny_set import TINY, Command, contents, keys_of

SKIP = OnBad("skip", 1000)


def spoil(source: Path, numbers: Any) -> dict[str, bytes]:
    """Damage these avatars, leaving their sizes; returns what mends them."""
    good = {f"cs{number}.png": (source / f"cs{number}.png").read_bytes() for number in numbers}
    for name, data in good.items():
        (source / name).write_bytes(data[:60] + bytes(9) + data[69:])
    return good


def mend(source: Path, good: dict[str, bytes]) -> None:
    for name, data in good.items():
        (source / name).write_bytes(data)


def named(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / FILE).read_bytes().splitlines()]


def as_packed(numbers: Any, val: float) -> list[str]:
    keys = [f"cs{number}" for number in sorted(numbers)]
    return [key for split in ("train", "val") for key in keys if split_of(key, val) == split]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_all_are_named_and_the_good_ones_packed(make_source, tiny, data: st.DataObject) -> None:
    """The rows are those of a pack of the good ones, but for where shards end."""
    numbers = data.draw(st.sets(st.integers(0, 300), min_size=1, max_size=25))
    wrong = data.draw(st.sets(st.sampled_from(sorted(numbers))))
    chosen = tiny(shard_size=data.draw(st.integers(1, 6)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_source(folder / "source", numbers)
        good = spoil(source, wrong)
        if wrong:
            with pytest.raises(InputError, match=f"{len(wrong)} bad image"):
                pack(source, folder / "out", chosen)
            assert [line["key"] for line in named(folder / "out")] == as_packed(wrong, chosen.val)
            assert not (folder / "out" / "index.json").exists()
            for line in named(folder / "out"):
                assert line["where"] == str(source / f"{line['key']}.png")
                assert line["reason"].startswith("truncated or damaged PNG")
        if wrong == numbers:
            with pytest.raises(InputError, match="none is good"):
                pack(source, folder / "skipped", chosen, on_bad=SKIP)
        else:
            summary = pack(source, folder / "skipped", chosen, on_bad=SKIP)
            assert summary.skipped == len(wrong) == Index.load(folder / "skipped").header.skipped
            assert (folder / "skipped" / FILE).exists() == bool(wrong)
            assert list(problems(folder / "skipped")) == []
            for split in ("train", "val"):
                expected = [
                    k for k in as_packed(numbers - wrong, chosen.val) if split_of(k, chosen.val) == split
                ]
                assert keys_of(folder / "skipped", split) == expected
        mend(source, good)
        pack(source, folder / "out", chosen)
        pack(source, folder / "whole", chosen)
        assert contents(folder / "out") == contents(folder / "whole")


def test_bytes_do_not_depend_on_jobs_or_attempts(make_source, tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(packer, "prepare_workers", lambda module: None)
    source, chosen = make_source(tmp_path / "source", range(60)), tiny(shard_size=5)
    spoil(source, [*range(5), 17, 40, 41, 59])
    pack(source, tmp_path / "one", chosen, on_bad=SKIP)
    pack(source, tmp_path / "two", chosen, on_bad=SKIP, jobs=2)
    with pytest.raises(InputError, match="9 bad images"):  # stopped, it has packed all there is
        pack(source, tmp_path / "three", chosen)
    assert pack(source, tmp_path / "three", chosen, on_bad=SKIP).written == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_mended_after_a_kill(make_source, tiny, tmp_path: Path) -> None:
    """An image of as many bytes as the bad one had: the shard that lacks it is packed again."""
    source, chosen = make_source(tmp_path / "source", range(60)), tiny(shard_size=5)
    good = spoil(source, [3, 4, 30])

    def stop(done: int, total: int | None) -> None:
        if done > 45:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", chosen, on_bad=SKIP, report=stop)
    assert (tmp_path / "out" / JOURNAL).exists()
    mend(source, {"cs3.png": good["cs3.png"]})
    pack(source, tmp_path / "out", chosen, on_bad=SKIP)
    assert [line["key"] for line in named(tmp_path / "out")] == as_packed([4, 30], chosen.val)
    pack(source, tmp_path / "fresh", chosen, on_bad=SKIP)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_limit(make_source, tiny, tmp_path: Path, command: Command) -> None:
    source, out = make_source(tmp_path / "source", range(60)), tmp_path / "out"
    spoil(source, range(20))
    flags = (source, "--out", out, *TINY, "--jobs", 1, "--on-bad", "skip")
    code, _, err = command(main, *flags)
    assert (
        code == 2 and err.count("\n") == 1 and "bad images so far" in err and "--bad-limit allows more" in err
    )
    assert 10 < len(named(out)) <= 20 and not (out / "index.json").exists()
    code, _, err = command(main, *flags, "--bad-limit", 19)
    assert code == 2 and "bad images so far" in err
    code, told, err = command(main, *flags, "--bad-limit", 20)
    assert (code, err) == (0, "") and "20 bad images left out" in told
    code, told, err = command(main, *flags)
    assert code == 0 and "complete already" in told and "20 bad images left out" in told
    code, told, _ = command(verify, out)
    assert code == 0 and "sound (" in told and "20 bad images left out" in told


def test_a_share_of_an_archive_is_known_at_its_end(make_source, tiny, tmp_path: Path) -> None:
    """Where the first images are bad, most of those so far are."""
    source = make_source(tmp_path / "source", range(60))
    spoil(source, range(12))
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        for file in sorted(source.iterdir(), key=lambda file: (int(file.stem[2:]), file.suffix)):
            tar.add(file, file.name)
    assert detect(archive).total is None
    few, many = tiny(shard_size=5), OnBad("skip")
    with pytest.raises(InputError, match=r"\(12 bad images, in .*bad-limit allows more"):
        pack(archive, tmp_path / "few", few, on_bad=many)
    with pytest.raises(InputError, match="bad images so far"):
        pack(archive, tmp_path / "three", few, on_bad=OnBad("skip", 3))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bad, "SHARE", 0.2)
        assert pack(archive, tmp_path / "out", few, on_bad=many).skipped == 12


@pytest.mark.parametrize(("samples", "allowed"), [(0, 10), (999, 10), (1100, 11), (10**6, 10**4)])
def test_usual_limit(samples: int, allowed: int) -> None:
    assert OnBad("skip").allowed(samples) == allowed
    assert OnBad("skip", 3).allowed(samples) == 3


def test_not_more_than_are_kept_in_memory(make_source, tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bad, "LISTED", 3)
    source = make_source(tmp_path / "source", range(40))
    spoil(source, range(40))
    with pytest.raises(InputError, match="bad images so far"):
        pack(source, tmp_path / "out", tiny(shard_size=5))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--on-bad", "ignore"], "--on-bad ignore: unknown; allowed: stop, skip"),
        (["--bad-limit", 3], "--bad-limit 3: only with --on-bad skip"),
        (["--on-bad", "skip", "--bad-limit", -1], "--bad-limit -1: allowed: 0 to 100000"),
        (["--on-bad", "skip", "--bad-limit", 10**6], "--bad-limit 1000000: allowed: 0 to 100000"),
    ],
)
def test_bad_flags(make_source, tmp_path: Path, command: Command, flags: list[object], told: str) -> None:
    source = make_source(tmp_path / "source", range(2))
    code, _, err = command(main, source, "--out", tmp_path / "out", *TINY, *flags)
    assert (code, err) == (2, f"error: {told}\n") and not (tmp_path / "out").exists()


def test_other_settings_where_all_were_bad(make_source, tiny, tmp_path: Path) -> None:
    """Such as a --crop that is too large: no shard was made with them."""
    source = make_source(tmp_path / "source", range(9))
    with pytest.raises(InputError, match=r"too small for --crop 99; .*; \.\.\. \(9 bad images, in "):
        pack(source, tmp_path / "out", tiny(crop=99))
    pack(source, tmp_path / "out", tiny())
    assert len(Index.load(tmp_path / "out").split("train")) and not (tmp_path / "out" / FILE).exists()


@pytest.mark.parametrize(
    ("error", "told"), [(errno.ENOENT, "No such file"), (errno.EACCES, "Permission"), (errno.EIO, None)]
)
def test_file_that_cannot_be_read(
    make_source, tiny, tmp_path: Path, monkeypatch, error: int, told: str | None
) -> None:
    """One that has vanished is bad; a disk that fails says nothing of the image."""
    source = make_source(tmp_path / "source", range(9))
    read: Callable[[Sample], bytes] = Sample.read_image

    def fails(sample: Sample) -> bytes:
        if sample.key == "cs5":
            raise OSError(error, os.strerror(error), str(sample.image))
        return read(sample)

    monkeypatch.setattr(Sample, "read_image", fails)
    if told is None:
        with pytest.raises(OSError, match="Input/output"):
            pack(source, tmp_path / "out", tiny(), on_bad=SKIP)
        assert not (tmp_path / "out" / FILE).exists()
        return
    pack(source, tmp_path / "out", tiny(), on_bad=SKIP)
    (line,) = named(tmp_path / "out")
    assert line["key"] == "cs5" and line["reason"].startswith(told)


def test_names_are_escaped(tmp_path: Path) -> None:
    bad.write_bad(tmp_path, [bad.Bad("a", "x\n\u202e\udcff.png", "bad\x1b[2J")])
    (line,) = (tmp_path / FILE).read_bytes().splitlines()
    assert line.decode("ascii").isprintable() and json.loads(line)["where"] == "x\n\u202e\udcff.png"


def test_words() -> None:
    assert [left_out(count) for count in (0, 1, 2)] == [
        "",
        ", 1 bad image left out",
        ", 2 bad images left out",
    ]
