"""CIFAR-10 and CIFAR-100 in their official binary form: the archive, in its own order, or its folder.

Facts: https://www.cs.toronto.edu/~kriz/cifar.html. A record is one byte of label (CIFAR-100: the superclass,
then the class), then 1,024 bytes of red, of green and of blue: 32 x 32 pixels, row by row. CIFAR-10 has five
files ``data_batch_1.bin`` to ``data_batch_5.bin`` of 10,000 records and ``test_batch.bin``, CIFAR-100
``train.bin`` of 50,000 and ``test.bin``; text files have the names of the classes, in the labels' order.

The official test images are the split ``test``, which nothing is trained on; train and val are both cut from
the others, by the hash of the key as everywhere.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from diffbase.cli import InputError
from diffbase.system_error import reading, sha256_of
from shards.schema import Attribute
from shards.sources.archive import Archive, File
from shards.sources.base import AS_IT_IS, Asked, Contents, Sample, natural, passed_over
from shards.sources.imagefolder import walk

EDGE = 32  # pixels
PIXELS = 3 * EDGE * EDGE  # bytes
NAMES_CAP = 4096  # bytes of a file with names
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
FINE = tuple(_FINE.split())
_COARSE = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
vehicles_1 vehicles_2
"""
COARSE = tuple(_COARSE.split())


@dataclass(frozen=True)
class Form:
    """What one of the two sets looks like."""

    name: str
    labels: tuple[Attribute, ...]
    """In the order of a record's bytes."""
    batches: Mapping[str, int]
    """The files with records, and how many records each has at most."""
    test: str
    """The one of them that is the test split."""
    names: Mapping[str, tuple[str, ...]]
    """The files with the classes' names."""
    folder: str
    pickled_folder: str
    pickled: tuple[str, ...]
    """Files of the pickled form, which is refused: it can run code."""

    signs: frozenset[str]
    """Names of files by which the set is known."""

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return len(self.labels) + PIXELS

    def check_whole(self, names: Collection[str], where: str) -> None:
        """InputError where the file of a training batch is not among ``names``."""
        for name in self.batches:
            if name not in names and name != self.test:
                raise InputError(f"{where}: {name} is missing")

    def is_ours(self, path: PurePosixPath) -> bool:
        """Whether a file is one of the set's."""
        return path.name in self.batches or path.name in self.names


TEN = Form(
    "CIFAR-10",
    (Attribute("class", len(CLASSES), CLASSES),),
    {**{f"data_batch_{n}.bin": 10_000 for n in range(1, 6)}, "test_batch.bin": 10_000},
    "test_batch.bin",
    {"batches.meta.txt": CLASSES},
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    ("data_batch_1", "data_batch_2", "test_batch"),
    frozenset({f"data_batch_{n}.bin" for n in range(1, 6)}),
)
HUNDRED = Form(
    "CIFAR-100",
    (Attribute("superclass", len(COARSE), COARSE), Attribute("class", len(FINE), FINE)),
    {"train.bin": 50_000, "test.bin": 10_000},
    "test.bin",
    {"fine_label_names.txt": FINE, "coarse_label_names.txt": COARSE},
    "cifar-100-binary",
    "cifar-100-python",
    ("train", "test", "meta"),
    frozenset({"fine_label_names.txt", "coarse_label_names.txt"}),
)


class CifarArchive(Archive):
    """The binary archive of one of the sets."""

    form: Form
    split_by = "source"
    crop: int | None = None

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        super().__init__(path, asked)
        self.schema = self.form.labels

    @classmethod
    def claims(cls, contents: Contents) -> bool:
        """A file with a name of the set's; InputError for the pickled form."""
        return _claims(cls.form, contents)

    def _samples(self) -> Iterator[Sample]:
        yield from _samples(self.form, self._files(self.form.is_ours), str(self.path))


class CifarFolder:
    """The unpacked archive of one of the sets."""

    form: Form
    kind: str
    forms: tuple[str, ...] = ("folder",)
    split_by = "source"
    crop: int | None = None

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        asked.only(self.kind)
        self.name, self._path, self.schema = path.resolve().name, path, self.form.labels
        sizes, _ = walk(path)
        self._ours = {file: size for file, size in sizes.items() if self.form.is_ours(file)}
        self.notes = passed_over(Counter(file.name for file in sizes.keys() - self._ours.keys()))
        self.form.check_whole({file.name for file in self._ours}, str(path))
        batches = [size for file, size in self._ours.items() if file.name in self.form.batches]
        self.total: int | None = sum(size // self.form.record for size in batches)
        self._read = 0

    @classmethod
    def claims(cls, contents: Contents) -> bool:
        """A file with a name of the set's; InputError for the pickled form."""
        return _claims(cls.form, contents)

    def digest(self) -> str:
        """Over all bytes of the set's files."""
        lines = (f"{file.name} {sha256_of(self._path / file)}\n" for file in sorted(self._ours))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def samples(self) -> Iterator[Sample]:
        """The samples, batch by batch."""
        self._read = 0
        for sample in _samples(self.form, self._files(), str(self._path)):
            self._read += 1
            yield sample

    def fraction(self) -> float:
        """Share of the samples given so far."""
        return self._read / (self.total or 1)

    def _files(self) -> Iterator[File]:
        for below in sorted(self._ours, key=lambda below: natural(str(below))):
            with reading(self._path / below) as file:
                yield File(below, str(self._path / below), self._ours[below], 0, lambda file=file: file)  # type: ignore[misc]


class Cifar10Archive(CifarArchive):
    """cifar-10-binary.tar.gz."""

    kind, form, looks_like = "cifar10", TEN, "cifar-10-binary.tar.gz or its folder"


class Cifar10Folder(CifarFolder):
    """cifar-10-batches-bin."""

    kind, form, looks_like = Cifar10Archive.kind, TEN, Cifar10Archive.looks_like


class Cifar100Archive(CifarArchive):
    """cifar-100-binary.tar.gz."""

    kind, form, looks_like = "cifar100", HUNDRED, "cifar-100-binary.tar.gz or its folder"


class Cifar100Folder(CifarFolder):
    """cifar-100-binary."""

    kind, form, looks_like = Cifar100Archive.kind, HUNDRED, Cifar100Archive.looks_like


def _claims(form: Form, contents: Contents) -> bool:
    names = {file.name for file in contents.files}
    folders = {file.parent.name for file in contents.files} | {contents.path.name}
    if form.pickled_folder in folders or set(form.pickled[:3]) <= names:
        archive = f"{form.name.lower()}-binary.tar.gz"
        raise InputError(
            f"{contents.path}: the pickled {form.name}, which is not read (a pickle can run code); "
            f"take {archive} from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    return form.folder in folders or bool(names & form.signs)


def _samples(form: Form, files: Iterable[File], source: str) -> Iterator[Sample]:
    seen: set[str] = set()
    labels = [attribute.name for attribute in form.labels]
    for file in files:
        name = file.path.name
        if name in seen:
            raise InputError(f"{file.where}: appears twice")
        seen.add(name)
        if name in form.names:
            if (
                file.size > NAMES_CAP
                or tuple(file.read().decode("ascii", "replace").split()) != form.names[name]
            ):
                raise InputError(
                    f"{file.where}: other classes than {form.name}'s {', '.join(form.names[name][:10])}"
                    f"{', ...' * (len(form.names[name]) > 10)}"
                )
            continue
        most = form.batches[name]
        if file.size % form.record or not 0 < file.size <= most * form.record:
            raise InputError(
                f"{file.where}: {file.size} bytes; allowed: 1 to {most} records of {form.record} bytes ("
                f"labels and {EDGE} x {EDGE} RGB)"
            )
        stream = file.open()
        for number in range(file.size // form.record):
            record = stream.read(form.record)
            if len(record) != form.record:
                raise InputError(f"{file.where}: the archive ends inside it")
            for value, attribute in zip(record, form.labels, strict=False):
                if value >= attribute.variants:
                    raise InputError(
                        f"{file.where}: record {number}: {attribute.name} {value}; allowed: 0 to "
                        f"{attribute.variants - 1}"
                    )
            yield Sample(
                f"{file.path.stem}_{number:05d}",
                f"{file.where}: record {number}",
                record[len(labels) :],
                PIXELS,
                dict(zip(labels, record, strict=False)),
                EDGE,
                "test" if name == form.test else None,
            )
    form.check_whole(seen, source)
