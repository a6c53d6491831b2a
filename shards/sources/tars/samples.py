"""The samples of one WebDataset tar, whoever wrote it.

A member's name ends at the first dot behind its last slash: what comes before is its sample's key, what comes
after says what it is (``a.b/01.seg.png``: the ``seg.png`` of ``a.b/01``). The members of a sample may lie
anywhere in the tar. Its image is the member ``jpg``, ``png``, ...; its labels are what ``cls`` says, the
fields of the object in ``json``, and ``txt``.

All bytes are read once, in the tar's order. Nothing is kept but a few numbers and the labels of each sample.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from diffbase.cli import InputError
from diffbase.redaction import shown
from diffbase.system_error import patiently
from shards.schema import LABELS_CAP, NAME_CAP, SHARD_SIZE_CAP
from shards.sources.archive import DAMAGE, MEMBERS_CAP
from shards.sources.base import IMAGE_CAP
from shards.sources.imagefolder import SUFFIXES
from shards.sources.tar_members import BadTar, Member, members
from shards.sources.tars.places import Place
from shards.sources.tars.stream import TAR_CAP, Hashed, opened

Value = str | int | float | bool | None
FIELDS_CAP = 1000  # of all samples together
NUMBERS = re.compile(r"-?(0|[1-9][0-9]{0,17})")
LABELS = ("cls", "json", "txt")
CLASS, TEXT = "class", "txt"
"""The columns that ``cls`` and ``txt`` become; a field of ``json`` has its own name."""
CAPTIONS = "texts of more than 255 characters"
LISTS = "lists or objects"


@dataclass(frozen=True, slots=True)
class Image:
    """A sample's image: its key in the tar, where its bytes lie, and their zlib.crc32."""

    key: str
    ending: str
    start: int
    size: int
    crc: int


@dataclass(frozen=True)
class Tar:
    """What is in one tar: its images in its order, and by field one value for each of them."""

    bytes: int
    sha256: str
    images: list[Image]
    columns: dict[str, list[Value]]
    left_out: dict[str, str]
    """Fields that cannot be labels, and why."""
    passed_over: Counter[str]
    """What is no sample, by kind."""


@dataclass(slots=True)
class _Sample:
    images: dict[str, tuple[Image, str | None]] = field(default_factory=dict)  # and what is wrong with it
    labels: dict[str, dict[str, Value]] = field(default_factory=dict)  # by member


Look = Callable[[bytes, str], object]
"""What looks at an image's bytes: InputError, which begins with the name that it is given, for a bad one."""


def scan(
    place: Place,
    *,
    columns: Sequence[str] = (),
    image_field: str | None = None,
    compressed: bool = False,
    look: Look = lambda data, where: None,
) -> Tar:
    """Read the tar at ``place``; of fields, those in ``columns``, or all.

    InputError names what is wrong with it; OSError of the system as of ``patiently``.
    """

    def read() -> Tar:
        with opened(place, compressed=compressed) as stream:
            return _Scan(place, columns, image_field, look).read(stream)

    try:
        return read() if isinstance(place, str) else patiently(read, place)
    except DAMAGE as error:
        raise InputError(f"{shown(place)}: not a whole tar ({error})") from error


class _Scan:
    def __init__(self, place: Place, columns: Sequence[str], image_field: str | None, look: Look) -> None:
        self._place, self._wanted, self._look = shown(place), frozenset(columns), look
        self._fields = tuple((image_field or "").lower().split(",")) if image_field else ()
        self._samples: dict[str, _Sample] = {}
        self._left_out: dict[str, str] = {}
        self._passed: Counter[str] = Counter()
        self._names: set[str] = set()

    def read(self, stream: Hashed) -> Tar:
        for number, member in enumerate(members(stream, TAR_CAP)):  # type: ignore[arg-type]  # reads, seeks
            if number == MEMBERS_CAP:
                raise BadTar(f"more than {MEMBERS_CAP} members")
            if member.kind == "other":
                raise InputError(f"{self._place}: {member.name}: a link or device; allowed: plain files")
            if member.kind == "file":
                self._take(member, stream)
        size, sha256 = stream.finish()
        images = self._images()
        names = sorted({name for image in images for name in self._told(image.key)})
        columns: dict[str, list[Value]] = {
            name: [self._told(image.key).get(name) for image in images] for name in names
        }
        return Tar(size, sha256, images, columns, self._left_out, self._passed)

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
        if f".{ending.rpartition('.')[2]}" in SUFFIXES:
            images = self._sample(key).images
            if ending in images:
                raise InputError(f"{where}: a second one of this name")
            images[ending] = self._image(key, ending, member, stream, where)
        elif ending in LABELS:
            labels = self._sample(key).labels
            if ending in labels:
                raise InputError(f"{where}: a second one of this name")
            if member.size > LABELS_CAP:
                raise InputError(f"{where}: {member.size} bytes; at most {LABELS_CAP} are allowed")
            labels[ending] = self._labels(ending, _content(member, stream), where)

    def _sample(self, key: str) -> _Sample:
        return self._samples.setdefault(key, _Sample())

    def _image(
        self, key: str, ending: str, member: Member, stream: Hashed, where: str
    ) -> tuple[Image, str | None]:
        if not 0 < member.size <= IMAGE_CAP:
            fault = f"{where}: {member.size} bytes; allowed: 1 to {IMAGE_CAP}"
            return Image(key, ending, member.start, member.size, 0), fault
        data, fault_found = _content(member, stream), None
        try:
            self._look(data, where)
        except InputError as error:
            fault_found = str(error)
        return Image(key, ending, member.start, member.size, zlib.crc32(data)), fault_found

    def _labels(self, ending: str, data: bytes, where: str) -> dict[str, Value]:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not text in UTF-8") from error
        if ending == "json":
            try:
                found = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not JSON") from error
            fields = found if isinstance(found, dict) else {}
            if not isinstance(found, dict):
                self._left_out["json"] = "no objects"
        else:
            text = text.strip()
            number = ending == "cls" and NUMBERS.fullmatch(text)
            fields = {CLASS if ending == "cls" else TEXT: int(text) if number else text}
        return {
            name: value
            for name, given in fields.items()
            if not self._wanted or name in self._wanted
            if (value := self._value(self._named(name), given)) is not None
        }

    def _named(self, name: str) -> str:
        self._names.add(name)
        if len(self._names) > FIELDS_CAP:
            raise InputError(f"{self._place}: more than {FIELDS_CAP} fields; choose some with --columns")
        return name

    def _value(self, name: str, given: object) -> Value:
        """A field's content as a label; None where there is none, or where it cannot be one."""
        if isinstance(given, dict | list):
            self._left_out[name] = LISTS
        elif isinstance(given, str) and len(given) > NAME_CAP:
            self._left_out[name] = CAPTIONS
        elif isinstance(given, float) and not math.isfinite(given):
            return None
        elif isinstance(given, int) and abs(given) >= 1 << 63:
            self._left_out[name] = "integers of more than 64 bits"
        elif isinstance(given, str | int | float):
            return given or (None if given == "" else given)
        return None

    def _told(self, key: str) -> dict[str, Value]:
        """The fields of a sample. What its JSON says of the class is more than its number in ``cls``."""
        labels = self._samples[key].labels
        told = {name: value for ending in LABELS for name, value in labels.get(ending, {}).items()}
        return {name: value for name, value in told.items() if name not in self._left_out}

    def _images(self) -> list[Image]:
        found = []
        for key, sample in self._samples.items():
            if not sample.images:
                self._passed["sample without an image"] += 1
                continue
            image, fault = sample.images[self._chosen(key, list(sample.images))]
            if fault is not None:
                raise InputError(fault)
            found.append(image)
        if not found:
            raise InputError(f"{self._place}: no images in it; allowed: {', '.join(SUFFIXES)}")
        if len(found) > SHARD_SIZE_CAP:
            raise InputError(f"{self._place}: {len(found)} samples; at most {SHARD_SIZE_CAP} are allowed")
        return sorted(found, key=lambda image: image.start)

    def _chosen(self, key: str, endings: list[str]) -> str:
        """Which of a sample's images it is: the one asked for, the only one, the only one of a plain ending."""
        for ending in self._fields:
            if ending in endings:
                return ending
        plain = [ending for ending in endings if "." not in ending]
        some = f"{', '.join(sorted(endings)[:5])}"
        if self._fields:
            raise InputError(
                f"{self._place}: sample {key} has no {' or '.join(self._fields)} (--image-field), but {some}"
            )
        if len(endings) > 1 and len(plain) != 1:
            raise InputError(
                f"{self._place}: sample {key} has several images ({some}); choose one with --image-field"
            )
        return plain[0] if plain else endings[0]


def _content(member: Member, stream: Hashed) -> bytes:
    data = stream.read(member.size)
    if len(data) < member.size:
        raise BadTar(f"it ends inside {member.name}")
    return data
