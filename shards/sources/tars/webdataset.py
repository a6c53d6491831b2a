"""WebDataset tars as a source that is packed anew: plain or gzipped, here or behind addresses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

from diffbase.cli import InputError
from diffbase.redaction import shown
from shards.schema import IMAGE_SUFFIXES, Attribute
from shards.sources.archive import DAMAGE
from shards.sources.base import AS_IT_IS, IMAGE_CAP, Asked, Contents, Sample
from shards.sources.contents import look
from shards.sources.tar_members import members
from shards.sources.tars.collection import check_asked, collect, fields_to_read
from shards.sources.tars.places import Place, names, passed_over, places
from shards.sources.tars.samples import LABELS, Tar, scan
from shards.sources.tars.stream import TAR_CAP, opened


class WebDataset:
    """Some tars, each read twice: for the labels, and for the images. ``paths`` as ``places`` takes them."""

    kind = "webdataset"
    forms: tuple[str, ...] = ("folder", "tar")
    looks_like = "WebDataset tars: one, a folder of them, or several paths, patterns or addresses"
    crop: int | None = None

    def __init__(self, paths: Path | Sequence[str], asked: Asked = AS_IT_IS) -> None:
        check_asked(asked)
        given = [str(paths)] if isinstance(paths, Path) else paths
        found = places(given)
        columns = fields_to_read(asked)
        scans = (
            scan(place, columns=columns, image_field=asked.image_field, compressed=True) for place in found
        )
        self._all = collect(found, names(found), asked, scans)
        self.name = source_name(given)
        self.split_by = self._all.split_by
        self.schema: tuple[Attribute, ...] = self._all.schema
        self.notes = (*passed_over(given), *self._all.notes)
        self.total: int | None = self._all.total
        self._read = 0

    @staticmethod
    def claims(contents: Contents) -> bool:
        """A tar with labels beside images, or a folder without images whose first tar is such a one."""
        if contents.form == "tar":
            return _has_samples(contents)
        if any(file.suffix.lower() in IMAGE_SUFFIXES for file in contents.files):
            return False
        try:
            return any(_has_samples(look(p)) for p in places([str(contents.path)])[:1] if isinstance(p, Path))
        except InputError:  # no tars in it, or damaged ones
            return False

    def digest(self) -> str:
        """Over the SHA-256 of all tars."""
        return self._all.digest()

    def samples(self) -> Iterator[Sample]:
        """The samples, tar by tar, in the order of the images."""
        columns = [(a.name, labels) for a, labels in zip(self.schema, self._all.labels, strict=True)]
        self._read = 0
        together = self._all
        for place, splits, tar, keys in zip(
            together.places, together.splits, together.tars, together.keys, strict=True
        ):
            images = _images(place, tar)
            for key, own, split, size, (where, data) in zip(
                keys, tar.keys, splits, tar.sizes, images, strict=True
            ):
                labels = {name: variants[self._read] for name, variants in columns}
                self._read += 1
                yield Sample(key, where, data, size, labels, split=split, split_key=own)

    def fraction(self) -> float:
        """Share of the samples given so far."""
        return self._read / max(1, self._all.total)


def source_name(given: Sequence[str]) -> str:
    """What an index calls the tars: the last part of their path only."""
    last = shown(given[0]).rstrip("/").rpartition("/")[2]
    return f"{last} and {len(given) - 1} more" if len(given) > 1 else last


def _images(place: Place, tar: Tar) -> Iterator[tuple[str, bytes]]:
    """The images of a tar that was scanned before, each with its name for errors.

    Of one that is too large nothing is read.
    """
    changed = InputError(f"{shown(place)}: changed while it was read; run the same command again")
    at = 0
    try:
        with opened(place, compressed=True) as stream:
            for member in members(stream, TAR_CAP):
                if at == len(tar.starts):
                    return
                if member.start == tar.starts[at]:
                    data = stream.read(tar.sizes[at]) if tar.sizes[at] <= IMAGE_CAP else b""
                    if crc32(data) != tar.crcs[at]:
                        raise changed
                    at += 1
                    yield f"{shown(place)}: {member.name}", data
    except DAMAGE as error:
        raise changed from error
    if at < len(tar.starts):
        raise changed


def _has_samples(contents: Contents) -> bool:
    """Whether among the first files there are an image and labels of one name."""
    images, labels = set(), set()
    for file in contents.files:
        key, _, ending = str(file).rpartition(".")
        if f".{ending.lower()}" in IMAGE_SUFFIXES:
            images.add(key)
        elif ending in LABELS:
            labels.add(key)
    return bool(images & labels)
