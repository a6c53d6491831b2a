"""The files of a stand-in for Google's Cartoon Set: the same names and labels, with artwork of our own.

``csX.png`` (500 x 500 RGBA, transparent background) and ``csX.csv`` (18 attributes), flat as cartoonset10k or
in ten sub-folders as cartoonset100k.

Avatar i depends on (seed, i) alone: not on the number of jobs, and a larger count extends the same set. Its
labels are independent and uniform. The CSV is written last and by renaming, so an avatar whose CSV exists is
complete: writing the set again draws only what is missing. ``render.json`` beside the set says what it is; a
set of another seed, layout or artwork is refused.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

from diffbase.cli import InputError, progress_bar
from diffbase.extras import extra
from diffbase.files import open_atomic, renamed, write_json
from diffbase.formats import json_file
from diffbase.system_error import is_there
from shards.packing.workers import map_in_order
from shards.schema import CARTOON_SET
from shards.sources.cartoon_csv import format_csv
from shards.standin.artwork import ARTWORK_VERSION
from shards.standin.names import NAMES

T = TypeVar("T")

LAYOUTS = ("flat", "nested")
MARKER = "render.json"
# Avatars a worker draws per message: large enough to hide the messages, small enough for a smooth end.
BATCH = 32


def labels_of(seed: int, index: int) -> dict[str, int]:
    """The labels of avatar ``index``: independent and uniform, from (seed, index) alone."""
    # A text seed goes through SHA-512, so neighbouring indices share nothing.
    generator = random.Random(f"avatar/{seed}/{index}")
    return {attribute.name: generator.randrange(attribute.variants) for attribute in CARTOON_SET}


def draw(seed: int, index: int) -> tuple[bytes, bytes]:
    """The PNG and the CSV of avatar ``index``, as bytes."""
    from shards.standin.artwork import avatar

    labels = labels_of(seed, index)
    return avatar.png_bytes(avatar.render(labels)), format_csv(labels).encode()


def stem_of(index: int, layout: str) -> str:
    """Path of avatar ``index`` inside its set, without suffix: ``cs12`` or ``2/cs12``."""
    return f"{index % 10}/cs{index}" if layout == "nested" else f"cs{index}"


def write_folder(out: Path, count: int, seed: int, jobs: int, layout: str) -> int:
    """Bring the set in ``out`` to ``count`` avatars; returns how many were drawn."""
    _claim(out, out / MARKER, count, seed, layout)
    for name in range(10) if layout == "nested" else ():
        (out / str(name)).mkdir(exist_ok=True)
    done = {path.stem for path in out.glob("*/cs*.csv" if layout == "nested" else "cs*.csv")}
    missing = [index for index in range(count) if f"cs{index}" not in done]
    for _ in _map_batches(partial(_write_batch, out, seed, layout), missing, jobs):
        pass
    _write_marker(out / MARKER, max(count, len(done)), seed, layout)
    return len(missing)


def write_tgz(archive: Path, count: int, seed: int, jobs: int, layout: str) -> int:
    """Write the set as one archive, whose bytes depend on the arguments alone; returns how many were drawn.

    The set lies in a folder named like the archive, as in Google's own. The avatars stand in the order of
    their numbers, in which the packer takes a folder's: both pack to the same shards.
    """
    marker = archive.with_name(archive.name + ".json")
    if archive.exists():
        found, wanted = _read_marker(marker) or {}, _description(count, seed, layout)
        if all(found.get(key) == wanted[key] for key in ("artwork", "count", "layout", "seed")):
            return 0
        raise InputError(f"{archive} exists and is not this set; remove it or choose another --tgz")
    archive.parent.mkdir(parents=True, exist_ok=True)
    folder = archive.name.split(".")[0]
    with (
        open_atomic(archive) as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        _add(tar, f"{folder}/{MARKER}", json.dumps(_description(count, seed, layout), indent=2).encode())
        for drawn in _map_batches(partial(_draw_batch, seed), list(range(count)), jobs):
            for index, png, csv in drawn:
                name = f"{folder}/{stem_of(index, layout)}"
                _add(tar, f"{name}.csv", csv)
                _add(tar, f"{name}.png", png)
    _write_marker(marker, count, seed, layout)
    return count


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime, uid and gid are 0, mode is 0644
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _draw_batch(seed: int, indices: list[int]) -> list[tuple[int, bytes, bytes]]:
    return [(index, *draw(seed, index)) for index in indices]


def _write_batch(out: Path, seed: int, layout: str, indices: list[int]) -> list[int]:
    for index in indices:
        png, csv = draw(seed, index)
        stem = f"{out}/{stem_of(index, layout)}"
        # Renamed, not synced: waiting for the disk at each file takes longer than drawing.
        for path, data in ((Path(f"{stem}.png"), png), (Path(f"{stem}.csv"), csv)):
            with renamed(path) as temporary:
                temporary.write_bytes(data)
    return indices


def _description(count: int, seed: int, layout: str) -> dict[str, object]:
    return {"artwork": ARTWORK_VERSION, "count": count, "layout": layout, "seed": seed, "names": NAMES}


def _write_marker(marker: Path, count: int, seed: int, layout: str) -> None:
    write_json(marker, _description(count, seed, layout), indent=2)


def _read_marker(marker: Path) -> dict[str, object] | None:
    """What a set says of itself; None where there is no marker."""
    if not is_there(marker):
        return None
    found = json_file.read(marker, most=1 << 16)
    if not isinstance(found, dict):
        raise InputError(f"{marker}: not a marker of this command")
    return found


def _claim(out: Path, marker: Path, count: int, seed: int, layout: str) -> None:
    """Make ``out`` ours, or refuse it: it may hold another set, or Google's."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out wants a folder")
    out.mkdir(parents=True, exist_ok=True)
    found = _read_marker(marker)
    if found is None:
        strangers = itertools.chain(out.glob("cs*.*"), out.glob("[0-9]/cs*.*"))
        if (stranger := next(strangers, None)) is not None:
            problem = f"{out} holds avatars ({stranger.name}) but no {MARKER}"
            raise InputError(f"{problem}: not drawn by this command")
        _write_marker(marker, count, seed, layout)
        return
    wanted = _description(count, seed, layout)
    for key in ("seed", "layout", "artwork"):
        if found.get(key) != wanted[key]:
            other = f"{key} {found.get(key)}, not {wanted[key]}"
            raise InputError(f"{out} holds a set of {other}; remove it or choose another --out")


def _map_batches(work: Callable[[list[int]], list[T]], indices: list[int], jobs: int) -> Iterator[list[T]]:
    """``work`` on batches of indices, in order, in ``jobs`` processes; progress on a terminal."""
    batches = [indices[at : at + BATCH] for at in range(0, len(indices), BATCH)]
    done = 0
    with (
        progress_bar("drawing") as report,
        closing(map_in_order(work, batches, min(jobs, max(len(batches), 1)))) as results,
    ):
        for result in results:
            done += len(result)
            report(done, len(indices))
            yield result


def require_skia() -> None:
    """Say what is missing before any process is started."""
    try:
        with extra("render", "drawing avatars"):
            import skia  # noqa: F401
    except ImportError as error:
        missing = re.search(r"lib(EGL|GL|GLESv2)\b", str(error))
        hint = "apt-get install libegl1 libgl1 (make system)" if missing else "pip install skia-python"
        raise InputError(f"drawing needs skia, which does not load ({error}): {hint}") from error
