"""The samples of one WebDataset tar, whoever wrote it.

A member's name ends at the first dot behind its last slash: what comes before is its sample's key, what comes
after says what it is (``a.b/01.seg.png``: the ``seg.png`` of ``a.b/01``). The members of a sample may lie
anywhere in the tar. Its image is the member ``jpg``, ``png``, ...; its labels are what ``cls`` says, the
fields of the object in ``json``, and ``txt``.

All bytes are read once, in the tar's order. Nothing is kept but a few numbers and the labels of each sample.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import NamedTuple

from diffbase.cli import InputError
from diffbase.redaction import shown
from diffbase.system_error import patiently
from shards.schema import IMAGE_SUFFIXES, LABELS_CAP, NAME_CAP, SHARD_SIZE_CAP
from shards.sources.archive import DAMAGE, MEMBERS_CAP
from shards.sources.base import IMAGE_CAP, KEY, check_size
from shards.sources.labels.columns import shown as printed
from shards.sources.tar_members import BadTar, Member, members
from shards.sources.tars.places import Place
from shards.sources.tars.stream import TAR_CAP, Hashed, opened

Cell = str | int | float | bool | None | EllipsisType
"""A field of a sample; ... for a list or an object. Of a long text only so much that it is known as such."""
FIELDS_CAP = 1000  # of all samples together
LABELS = ("cls", "json", "txt")
CLASS, TEXT = "class", "txt"
"""The columns that ``cls`` and ``txt`` become; a field of ``json`` has its own name."""


@dataclass(frozen=True)
class Tar:
    """What is in one tar: its samples, in the order of their images, one entry for each in every list."""

    bytes: int
    sha256: str
    keys: Sequence[str]
    """Those of the tar, made plain; see ``plain_key``."""
    starts: array[int]
    """Where the images' bytes begin, how many they are, and their zlib.crc32."""
    sizes: array[int]
    crcs: array[int]
    columns: dict[str, list[Cell]]
    """By field the samples' values."""
    fields: set[str]
    """All that are there, also those that nobody wanted."""
    passed_over: Counter[str]
    """What is no sample, by kind."""
    bad: list[BadImage]
    """What is wrong with images that are not among the samples."""


BadImage = tuple[str, str, str]
"""Of a sample that is left out: its key, where its image lies, and what is wrong with it."""


class _Image(NamedTuple):
    start: int
    size: int
    crc: int
    fault: tuple[str, str] | None  # where, and what


@dataclass(slots=True)
class _Sample:
    endings: tuple[str, ...] = ()  # of its images, then of its labels
    images: tuple[_Image, ...] = ()
    labels: dict[str, Cell] = field(default_factory=dict)


Look = Callable[[bytes, str], object]
"""What looks at an image's bytes: InputError, which begins with the name that it is given, for a bad one."""


def scan(
    place: Place,
    *,
    columns: Sequence[str] = (),
    image_field: str | None = None,
    compressed: bool = False,
    look: Look | None = None,
) -> Tar:
    """Read the tar at ``place``; of fields, those in ``columns``, or all.

    ``image_field`` names endings, by commas: the first that a sample has is its image. InputError names what
    is wrong with the tar; OSError of the system as of ``patiently``. Without ``look`` every image is taken,
    of whatever size: whoever reads it finds out.
    """

    def read() -> Tar:
        with opened(place, compressed=compressed) as stream:
            return _Scan(place, columns, image_field, look).read(stream)

    try:
        return read() if isinstance(place, str) else patiently(read, place)
    except DAMAGE as error:
        raise InputError(f"{shown(place)}: not a whole tar ({error})") from error


def plain_key(key: str, tar: str = "") -> str:
    """A sample's key for an index: as it is where it is plain, else with a hash of it.

    With a ``tar``'s name in the hash, it is another one for each tar.
    """
    if not tar and KEY.fullmatch(key):
        return key
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", key)[:60].strip("-_") or "image"
    digest = hashlib.blake2b(f"{tar}/{key}".encode("utf-8", "surrogateescape"), digest_size=8)
    return f"{readable}-{digest.hexdigest()}"


class _Scan:
    def __init__(
        self, place: Place, columns: Sequence[str], image_field: str | None, look: Look | None
    ) -> None:
        self._place, self._wanted, self._look = shown(place), frozenset(columns), look
        self._endings = tuple((image_field or "").lower().split(",")) if image_field else ()
        self._samples: dict[str, _Sample] = {}
        self._passed: Counter[str] = Counter()
        self._fields: set[str] = set()

    def read(self, stream: Hashed) -> Tar:
        for number, member in enumerate(members(stream, TAR_CAP)):
            if number == MEMBERS_CAP:
                raise BadTar(f"more than {MEMBERS_CAP} members")
            if member.kind == "other":
                raise InputError(f"{self._place}: {member.name}: a link or device; allowed: plain files")
            if member.kind == "file":
                self._take(member, stream)
        size, sha256 = stream.finish()
        bad: list[BadImage] = []
        found = self._found(bad)
        told = [self._samples[key].labels for key, _ in found]
        columns = {name: [one.get(name) for one in told] for name in sorted({n for one in told for n in one})}
        images = [image for _, image in found]
        return Tar(
            size,
            sha256,
            [plain_key(key) for key, _ in found],
            array("q", [image.start for image in images]),
            array("i", [image.size for image in images]),
            array("I", [image.crc for image in images]),
            columns,
            self._fields,
            self._passed,
            bad,
        )

    def _take(self, member: Member, stream: Hashed) -> None:
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        if member.name.startswith("/") or ".." in folder.split("/"):
            raise InputError(f"{self._place}: {member.name}: a name that leads out of the tar")
        stem, _, ending = name.partition(".")
        if not stem or (name.startswith("__") and name.endswith("__")):
            self._passed["hidden file"] += 1
            return
        key, ending = folder + slash + stem, ending.lower()
        where = f"{self._place}: {member.name}"
        is_image = f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES
        sample = self._samples.setdefault(key, _Sample())
        if ending in sample.endings:
            raise InputError(f"{where}: a second one of this name")
        if is_image:
            sample.endings = (
                *sample.endings[: len(sample.images)],
                sys.intern(ending),
                *sample.endings[len(sample.images) :],
            )
            sample.images += (self._image(member, stream, where),)
        elif ending in LABELS:
            sample.endings += (sys.intern(ending),)
            if member.size > LABELS_CAP:
                raise InputError(f"{where}: {member.size} bytes; at most {LABELS_CAP} are allowed")
            fields = self._labels(ending, _content(member, stream), where)
            # What JSON says of the class is more than its number.
            sample.labels = sample.labels | fields if ending == "json" else fields | sample.labels

    def _image(self, member: Member, stream: Hashed, where: str) -> _Image:
        """Whether it is its sample's, and a fault of it so matters, the whole tar tells."""
        size = min(member.size, IMAGE_CAP + 1)  # beyond that it matters to nobody how much
        data = _content(member, stream) if size <= IMAGE_CAP else b""
        fault = None
        if self._look is not None:
            try:
                check_size(where, size, IMAGE_CAP)
                self._look(data, where)
            except InputError as error:
                fault = where, str(error).removeprefix(f"{where}: ")
        return _Image(member.start, size, zlib.crc32(data), fault)

    def _labels(self, ending: str, data: bytes, where: str) -> dict[str, Cell]:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if ending == TEXT:  # which may be a caption that nobody asked for
                self._passed["non-UTF-8 text"] += 1
                return {}
            raise InputError(f"{where}: not text in UTF-8") from error
        if ending == "json":
            try:
                found = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not JSON") from error
            fields = found if isinstance(found, dict) else {"json": ...}
        else:
            text = text.strip()
            # As our own packer and Hugging Face's datasets write an unknown class.
            fields = {CLASS: None if text == "-1" else text} if ending == "cls" else {TEXT: text}
        fields = {printed(name): value for name, value in fields.items()}
        self._fields.update(fields)
        if len(self._fields) > FIELDS_CAP:
            raise InputError(f"{self._place}: more than {FIELDS_CAP} fields")
        return {
            sys.intern(name): _cell(value)
            for name, value in fields.items()
            if not self._wanted or name in self._wanted or name.lower() in self._wanted
        }

    def _found(self, bad: list[BadImage]) -> list[tuple[str, _Image]]:
        """Key and image of the samples in the order of the images; the others go to ``bad``."""
        found = []
        # A mask is no image where others of the tar have one.
        plain = not self._endings and any(map(_plain, map(_image_endings, self._samples.values())))
        for key, sample in self._samples.items():
            endings = _image_endings(sample)
            if not endings or (plain and not _plain(endings)):
                self._passed["imageless sample"] += 1
                continue
            image = sample.images[endings.index(self._chosen(key, endings))]
            if image.fault is None:
                found.append((key, image))
            else:
                bad.append((plain_key(key), *image.fault))
        if not found and not bad:
            raise InputError(f"{self._place}: no images in it; allowed: {', '.join(IMAGE_SUFFIXES)}")
        if len(found) > SHARD_SIZE_CAP:
            raise InputError(f"{self._place}: {len(found)} samples; at most {SHARD_SIZE_CAP} are allowed")
        return sorted(found, key=lambda one: one[1].start)

    def _chosen(self, key: str, endings: tuple[str, ...]) -> str:
        """Which of a sample's images it is: the one asked for, the only one, or the only plain ending."""
        for ending in self._endings:
            if ending in endings:
                return ending
        plain = _plain(endings)
        some = f"{', '.join(sorted(endings)[:5])}"
        if self._endings:
            raise InputError(
                f"{self._place}: sample {key} has no {' or '.join(self._endings)} (--image-field), but {some}"
            )
        if len(endings) > 1 and len(plain) != 1:
            raise InputError(
                f"{self._place}: sample {key} has several images ({some}); choose one with --image-field"
            )
        return plain[0] if plain else endings[0]


def _image_endings(sample: _Sample) -> tuple[str, ...]:
    return sample.endings[: len(sample.images)]


def _plain(endings: tuple[str, ...]) -> list[str]:
    return [ending for ending in endings if "." not in ending]


def _cell(value: object) -> Cell:
    if isinstance(value, str):
        return value[: NAME_CAP + 1]
    return value if value is None or isinstance(value, int | float) else ...


def _content(member: Member, stream: Hashed) -> bytes:
    data = stream.read(member.size)
    if len(data) < member.size:
        raise BadTar(f"it ends inside {member.name}")
    return data
