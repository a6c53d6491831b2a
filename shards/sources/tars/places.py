"""Where the tars lie that somebody names: files, folders of them, brace patterns and addresses."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path

from diffbase.cli import InputError
from diffbase.files import path_of
from diffbase.redaction import shown
from shards.remote.fetch import check_url, is_url
from shards.sources.base import describe, natural
from shards.sources.layout import SPLIT_NAMES

Place = Path | str
"""A path, or an address."""
SUFFIXES = (".tar", ".tgz", ".tar.gz")
TARS_CAP = 1 << 20
_NAME_BYTES = 200  # of a plain name; a cache lengthens it
_NUMBERS = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
_BRACES = re.compile(r"\{([^{}]*)\}")


def places(given: Sequence[str]) -> tuple[Place, ...]:
    """The tars that ``given`` names, each once and in that order; InputError for what leads to none.

    ``{000..010}`` stands for so many numbers, ``{a,b}`` for several words; a folder for the tars in it and in
    its folders ``train``, ``val`` and ``test``, in natural order.
    """
    found: dict[Place, None] = {}
    for name in _named(given):
        found |= dict.fromkeys(_tars(name))
        _check_count(found)
    if len({is_url(place) for place in found}) > 1:
        raise InputError(f"{shown(given[0])}: tars here and tars behind an address; give one kind of them")
    return tuple(found)


def _named(given: Sequence[str]) -> Iterator[str]:
    for text in given:
        yield from [text] if not is_url(text) and is_there(text) else _expanded(text)


def is_there(text: str) -> bool:
    """Whether a file or folder has this name; a long pattern is none, though the system refuses to look."""
    try:
        return Path(text).exists()
    except OSError:
        return False


def passed_over(given: Sequence[str]) -> tuple[str, ...]:
    """A line about what lies in the folders among ``given``, as ``places`` takes it, beside their tars."""
    names = [
        place.name + "/" * place.is_dir()
        for path in [path_of(text, "TARS") for text in _named(given) if not is_url(text)]
        if path.is_dir()
        for folder in _folders(path)
        for place in folder.iterdir()
        if not is_tar(place) and not (folder == path and _is_split(place))
    ]
    if not names:
        return ()
    some = f"{', '.join(name[:80] for name in sorted(names)[:5])}{', ...' * (len(names) > 5)}"
    what = "file or folder" if len(names) == 1 else "files or folders"
    return (f"{len(names)} other {what} passed over ({some})",)


def _check_count(found: Sized) -> None:
    if len(found) > TARS_CAP:
        raise InputError(f"more than {TARS_CAP} tars")


def _expanded(text: str) -> list[str]:
    """What a pattern stands for: ``{a,b}`` and ``{00..10}``, from left to right."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    if numbers := _NUMBERS.fullmatch(match[1]):
        first, last = numbers.groups()
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 1
        _check_count(range(int(first), min(int(last), int(first) + TARS_CAP) + 1))
        words = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
        if not words:
            raise InputError(f"{shown(text)}: {match[0]} counts backwards")
    elif "," in match[1]:
        words = match[1].split(",")
    else:
        raise InputError(f"{shown(text)}: {match[0]} is no pattern; allowed: {{000..010}} and {{a,b}}")
    rest = _expanded(text[match.end() :])
    _check_count(range(len(words) * len(rest)))
    return [text[: match.start()] + word + end for word in words for end in rest]


def _tars(text: str) -> list[Place]:
    if is_url(text):
        check_url(text)
        return [text]
    path = path_of(text, "TARS")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    tars = [p for folder in _folders(path) for p in folder.iterdir() if is_tar(p)]
    tars.sort(key=lambda p: natural(str(p)))
    if not tars:
        raise InputError(f"{path}: no tars in it ({describe(path)})")
    return list(tars)


def _folders(path: Path) -> Iterator[Path]:
    """Those in which a folder's tars are looked for."""
    yield path
    yield from filter(_is_split, path.iterdir())


def _is_split(path: Path) -> bool:
    return path.name.lower() in SPLIT_NAMES and path.is_dir()


def splits(found: Sequence[Place]) -> list[str | None]:
    """The split that each tar's name tells, or its folder's; None where a hash of the keys is to decide.

    Names tell something where one says ``train``; what says nothing then is of ``train`` too.
    """
    told = [_split(place) for place in found]
    if "train" not in told:
        return [None] * len(told)
    return [split or "train" for split in told]


def _split(place: Place) -> str | None:
    *_, folder, name = ["", "", *_path(place).split("/")]
    words = {SPLIT_NAMES[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLIT_NAMES}
    return words.pop() if len(words) == 1 else SPLIT_NAMES.get(folder.lower())


def names(found: Sequence[Place]) -> list[str]:
    """A plain file name for each place, no two alike: its own, or one with a hash of more of its path."""
    paths = [_path(place) for place in found]
    ends: list[str] = []
    for parts in range(1, 1 + max((path.count("/") for path in paths), default=0) + 1):
        ends = ["/".join(path.split("/")[-parts:]) for path in paths]
        if len(set(ends)) == len(ends):
            return [end if _is_plain(end) else _plain(end) for end in ends]
    raise InputError(f"{shown(next(e for e in paths if paths.count(e) > 1))}: given twice")


def _path(place: Place) -> str:
    return re.sub("[?#].*", "", place) if isinstance(place, str) else str(whole(place))


def whole(path: Path) -> Path:
    """A path from the root on; a link in its last place is a name as any other."""
    return path.parent.resolve() / path.name


def _is_plain(name: str) -> bool:
    """Whether an index may name a file so (shards.header), and a cache keep it under this name."""
    return (
        name.isprintable()
        and not name.startswith(".")
        and not set(name) & set("/\\:")
        and 0 < len(os.fsencode(name)) <= _NAME_BYTES
    )


def _plain(end: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", end.removesuffix(".tar"))[-60:].strip("-")
    return f"{readable}-{hashlib.blake2b(os.fsencode(end), digest_size=8).hexdigest()}.tar"


def is_tar(path: Path) -> bool:
    """Whether a file in a folder is one of its tars, by its name."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()
