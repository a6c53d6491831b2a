"""A folder of images that someone unpacked, as JSON of paths and what lies there: a file, a link ..."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath

from diffbase.cli import InputError
from shards.packing.plan import Settings
from shards.sources import detect
from tests.support.fuzz.examples import picture, saved
from tests.support.fuzz.target import Target

EXAMPLE = {
    "ant/a b.png": "image",
    "ant/2.png": "image",
    "bee/1.png": "image",
    "bee/2.png": "link ../ant/2.png",
}
CARTOONS = {"cs1.png": "image", "cs1.csv": "table", "2/cs2.png": "image", "2/cs2.csv": "table"}
WORDS = [
    b"link ../../../outside/x",
    b"link /etc",
    b"link .",
    b"fifo",
    b"empty",
    b".png",
    b"/",
    b"__",
    b"\\ud800",
    b"a" * 300,
]


def target() -> Target:
    image = saved(picture(), "PNG")

    def make(source: Path, tree: object) -> None:
        for name, what in list(tree.items() if isinstance(tree, dict) else ())[:50]:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise InputError("no such example")
            try:
                place = source / path
                place.parent.mkdir(parents=True, exist_ok=True)
                if str(what).startswith("link "):
                    place.symlink_to(str(what)[5:])
                elif what == "fifo":
                    os.mkfifo(place)
                elif what != "folder":
                    place.write_bytes(
                        image if what == "image" else b"" if what == "empty" else str(what).encode()
                    )
            except (OSError, ValueError) as error:  # a name that no disk takes
                raise InputError("no such example") from error

    def feed(data: bytes, folder: Path) -> object:
        try:
            tree = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError("no such example") from error
        source = folder / "source"
        source.mkdir()
        make(source, tree)
        found = detect(source)
        samples = list(found.samples())
        assert samples and len({sample.key for sample in samples}) == len(samples)
        assert all(Path(sample.image).resolve().is_relative_to(source) for sample in samples)  # type: ignore[arg-type]
        json.dumps(Settings().about(found, found.digest()), ensure_ascii=False).encode()
        return samples

    return Target([json.dumps(EXAMPLE).encode(), json.dumps(CARTOONS).encode()], feed, WORDS)
