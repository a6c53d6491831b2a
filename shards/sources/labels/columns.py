"""A table's column becomes an attribute, or a reason why not.

Strings are variants in natural order; true and false, 1 and 0, 1 and -1 are yes and no; numbers are variants
in their order where they are few, else quantiles (``--bins``) or none. An empty cell, null and NaN are
unknown.
"""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

from diffbase.line import printable
from shards.schema import NAME_CAP, UNKNOWN, VARIANTS_CAP, Attribute
from shards.sources.base import natural

STRINGS_CAP = 4096  # different ones; a column that --columns names may have VARIANTS_CAP
NUMBERS_CAP = 64  # different ones that are a variant each without --columns or --bins
FEW = 16  # different values that are never too many for the number of rows
NOTHING = ("", "null", "nan")
"""What stands for a missing value, in any case and with any spaces around it."""
NESTED = object()
"""In the place of a cell that is a list, a struct or bytes."""
Cell = object  # str, int, float, bool, None or NESTED
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})(\.[0-9]{0,30})?([eE][+-]?[0-9]{1,3})?")


class LeftOut(ValueError):  # noqa: N818 - not for callers: whoever takes the columns together notes it
    """Why a column is no attribute."""


class Column:
    """The cells of one column, row by row, in memory of some bytes a row and some megabytes.

    ``named``: a user asked for it, so many values are meant. ``classes``: its whole numbers are classes,
    never to be put together, however many.
    """

    def __init__(self, name: str, named: bool = False, classes: bool = False) -> None:
        self.name = name
        self._most = VARIANTS_CAP if named or classes else STRINGS_CAP
        self._named, self._classes = named, classes
        self.binned = False
        """Whether the attribute's variants are quantiles."""
        self._fault = ""
        self._codes = array("i")  # a row's place in _seen.texts, or UNKNOWN
        self._seen = _Seen()
        self._numbers: array[float] | None = None  # in place of both where numbers are too many
        self.class_names: tuple[str, ...] = ()
        """The variants' names where they are known before."""

    def add(self, cells: Iterable[Cell], row: int | None = None) -> None:
        """The next rows' cells, after unknown ones up to ``row``."""
        if self._fault:
            return
        # True is 1 to a dict: which of them comes first would tell what both are.
        cells = (text_of(cell) if isinstance(cell, bool) else cell for cell in cells)
        if self._numbers is not None:
            self._numbers.extend([math.nan] * ((row or 0) - len(self._numbers)))
            self._extend_numbers(cells)
            return
        self._codes.extend([UNKNOWN] * ((row or 0) - len(self._codes)))
        self._codes.extend(map(self._seen.__getitem__, cells))
        if self._seen.fault:
            self._leave(self._seen.fault)
        elif max(len(self._seen), len(self._seen.texts)) > self._most:  # long cells are in the latter only
            numbers = [number_of(text) for text in self._seen.texts]
            if None in numbers:
                self._leave(f"more than {self._most} different values")
                return
            values = [*(float(n) for n in numbers if n is not None), math.nan]  # the last for UNKNOWN
            self._numbers = array("d", (values[code] for code in self._codes))
            self._codes, self._seen = array("i"), _Seen()

    def _extend_numbers(self, cells: Iterable[Cell]) -> None:
        assert self._numbers is not None
        for cell in cells:
            text = text_of(cell)
            number = math.nan if text is None else number_of(text) if text else None
            if number is None:
                self._leave(f"more than {self._most} different values")
                return
            self._numbers.append(float(number))

    def _leave(self, reason: str) -> None:
        self._fault, self._codes, self._seen, self._numbers = reason, array("i"), _Seen(), None

    def texts(self, rows: Sequence[int]) -> list[str | None]:
        """The cells of ``rows`` as text, None for unknown. LeftOut where they were too many to keep."""
        if self._fault or self._numbers is not None:
            raise LeftOut(self._fault or f"more than {self._most} different values")
        self._codes.extend([UNKNOWN] * (max(rows, default=-1) + 1 - len(self._codes)))
        texts = [*self._seen.texts, None]
        return [texts[self._codes[row]] for row in rows]

    def attribute(
        self, rows: Sequence[int], training: Sequence[bool], bins: int | None
    ) -> tuple[Attribute, array[int]]:
        """The attribute and the variants of ``rows``; ``training`` says which of these are trained on.

        Raises LeftOut.
        """
        if self._fault:
            raise LeftOut(self._fault)
        if self._numbers is not None:
            self._numbers.extend([math.nan] * (max(rows, default=-1) + 1 - len(self._numbers)))
            values = [None if math.isnan(n := self._numbers[row]) else _whole(n) for row in rows]
            return self._binned(values, training, bins)
        texts = list(self._seen.texts)
        if not texts:
            raise LeftOut("no value at all")
        numbers = [number_of(text) for text in texts]
        named, variants = _named(texts, numbers)
        if len(named) == 1 and not self._named:
            raise LeftOut(f"one value only ({named[0]:.40})")
        self._codes.extend([UNKNOWN] * (max(rows, default=-1) + 1 - len(self._codes)))
        codes = array("i", (self._codes[row] for row in rows))
        many = len(named) > FEW and 2 * len(named) > len(codes) - codes.count(UNKNOWN)
        if None not in numbers and len(named) > 2:
            whole = all(isinstance(number, int) for number in numbers)
            kept = whole and (self._named or self._classes)
            too_many = not kept and (len(named) > NUMBERS_CAP or many)
            binned = bins is not None and len(named) > bins and not (whole and self._classes)
            if too_many or binned:
                return self._binned([numbers[c] if c != UNKNOWN else None for c in codes], training, bins)
        elif many and not self._named:
            raise LeftOut("nearly every sample has a value of its own")
        variants.append(UNKNOWN)  # at place UNKNOWN
        attribute = Attribute(self.name, len(named), tuple(named))
        return attribute, array("i", (variants[code] for code in codes))

    def _binned(
        self, values: Sequence[int | float | None], training: Sequence[bool], bins: int | None
    ) -> tuple[Attribute, array[int]]:
        """Quantiles of the training samples' values; equal ones are one."""
        if bins is None:
            raise LeftOut("numbers of many values; --bins N makes N quantiles of them")
        known = sorted(v for v, trained in zip(values, training, strict=True) if trained and v is not None)
        if not known:
            raise LeftOut("no value of a training sample")
        edges = sorted({known[n * len(known) // bins] for n in range(1, bins)} - {known[0]})
        if not edges:
            raise LeftOut("its quantiles are all equal")
        whole = all(v is None or isinstance(v, int) for v in values)
        names, self.binned = tuple(_ranges([known[0], *edges, known[-1]], whole)), True
        variants = (UNKNOWN if v is None else bisect_right(edges, v) for v in values)
        return Attribute(self.name, len(names), names), array("i", variants)


class ClassColumn(Column):
    """The variants' numbers; their names are the ``class_names``, as of Hugging Face's ClassLabel."""

    def __init__(self, name: str, class_names: tuple[str, ...]) -> None:
        super().__init__(name)
        self.class_names = class_names
        self._seen.texts = {text: number for number, text in enumerate(class_names)}

    def add(self, cells: Iterable[Cell], row: int | None = None) -> None:
        """As of Column. LeftOut for what is no number of a class; -1 is unknown, as null is."""
        self._codes.extend([UNKNOWN] * ((row or 0) - len(self._codes)))
        for cell in cells:
            if cell is not None and (type(cell) is not int or not UNKNOWN <= cell < len(self.class_names)):
                raise LeftOut(f"{cell!r:.40}; allowed: 0 to {len(self.class_names) - 1}")
            self._codes.append(UNKNOWN if cell is None else cell)

    def attribute(
        self, rows: Sequence[int], training: Sequence[bool], bins: int | None
    ) -> tuple[Attribute, array[int]]:
        """As of Column."""
        self._codes.extend([UNKNOWN] * (max(rows, default=-1) + 1 - len(self._codes)))
        attribute = Attribute(self.name, len(self.class_names), self.class_names)
        return attribute, array("i", (self._codes[row] for row in rows))


class _Seen(dict[Cell, int]):
    """The number of each different value, by cell; ``texts`` are the values in the order of their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, int] = {}
        self.fault = ""

    def __missing__(self, cell: Cell) -> int:
        text = text_of(cell)
        if text is None or self.fault:
            return UNKNOWN
        if not text:
            self.fault = "lists, structs or bytes"
        elif len(text) > NAME_CAP or len(text := shown(text)) > NAME_CAP:
            self.fault = f"free text (of more than {NAME_CAP} characters)"
        else:
            # Neither NaN, which is equal to nothing, nor spaces without end get here.
            number = self.texts.setdefault(text, len(self.texts))
            if not isinstance(cell, str) or len(cell) <= NAME_CAP:
                self[cell] = number
            return number
        return UNKNOWN


def shown(text: str) -> str:
    """A value or a column's name as a name: any spaces are one, what cannot be printed is escaped."""
    return printable(" ".join(text.split()))


def text_of(cell: Cell) -> str | None:
    """A cell as text: None for unknown, and "" for what is no single value."""
    if isinstance(cell, str):
        text = cell.strip()
        return None if text.lower() in NOTHING else text
    if cell is NESTED:
        return ""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return str(int(cell))  # a column of whole numbers in which one is missing is often written as floats
    # Of a number with more digits, which Python does not write, nobody makes a variant.
    return "" if isinstance(cell, int) and cell.bit_length() > 512 else str(cell)


def number_of(text: str) -> int | float | None:
    """A number; None for any other text, such as 007, which is a name."""
    if not _NUMBER.fullmatch(text):
        return None
    return _whole(float(text)) if set(text) & set(".eE") else int(text)


def _whole(number: float) -> int | float:
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _named(texts: Sequence[str], numbers: Sequence[int | float | None]) -> tuple[list[str], list[int]]:
    """The variants' names in their order, and the variant of each text."""
    if {text.lower() for text in texts} == {"true", "false"}:
        return ["no", "yes"], [int(text.lower() == "true") for text in texts]
    told = [number for number in numbers if number is not None]
    if len(told) < len(texts):
        names = sorted(texts, key=natural)
        places = {name: place for place, name in enumerate(names)}
        return names, [places[text] for text in texts]
    if set(told) in ({-1, 1}, {0, 1}):
        return ["no", "yes"], [int(number == 1) for number in told]
    ordered = sorted(set(told))
    numbered = {number: place for place, number in enumerate(ordered)}
    return [str(number) for number in ordered], [numbered[number] for number in told]


def _ranges(edges: Sequence[int | float], whole: bool) -> list[str]:
    """``1 to 4``, ``5 to 9`` where all values are whole, else ``0.5 to 1.25``.

    An edge belongs to what is above it.
    """
    last = len(edges) - 2
    if whole:
        pairs = [(low, high - (n < last)) for n, (low, high) in enumerate(pairwise(edges))]
        return [str(low) if low == high else f"{low} to {high}" for low, high in pairs]
    short = [f"{edge:.6g}" for edge in edges]
    told = short if len(set(short)) == len(set(edges)) else [str(edge) for edge in edges]
    return [f"{low} to {high}" for low, high in pairwise(told)]
