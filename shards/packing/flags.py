"""The command line of shards.pack: its flags, and what they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from diffbase.cli import Parser, add_answer, place
from shards.codec import ENCODINGS, KEEP
from shards.packing.bad import AT_LEAST, FILE, SHARE, SKIP, STOP, OnBad
from shards.packing.plan import Settings
from shards.remote.fetch import is_url
from shards.sources import SOURCES, Asked
from shards.sources.tars.places import is_there

if TYPE_CHECKING:
    from shards.packing.parts.part import Part


def parser(prog: str) -> Parser:
    """The flags."""
    defaults = Settings()
    parser = Parser(
        prog=prog,
        description="Pack labelled images into WebDataset tar shards with an index. The same command, run "
        "again after a kill, goes on where it was.",
    )
    add = parser.add_argument
    several = (
        "a folder, or a zip, .tar or .tgz of it, or parquet; WebDataset tars also as several paths, "
        "patterns, addresses"
    )
    add("source", nargs="+", metavar="SOURCE", help=several)
    add("--out", type=place, required=True, metavar="DIR", help="folder for the shards, or a URL (s3://...)")
    add("--kind", help=f"kind of source: {', '.join(SOURCES)} (default: found out)")
    add_prepared(parser, "edge of the packed images", "360 for cartoonset, else the shorter side")
    packed_as = f"packed as: {', '.join(ENCODINGS)}, or {KEEP}: JPEGs of that size as they are (%(default)s)"
    add("--image", default=defaults.image, help=packed_as)
    add("--shard-size", type=int, default=defaults.shard_size, help="samples per shard (%(default)s)")
    add("--part", metavar="I/N", help="pack every N-th shard alone; shards.merge makes one of all N parts")
    add_asked(parser)
    add_answer(parser)
    return parser


def add_prepared(parser: Parser, size: str, crop: str) -> None:
    """The flags that say how images are prepared and split; ``size`` and the default ``crop`` in words."""
    add, defaults = parser.add_argument, Settings()
    add("--size", type=int, default=defaults.size, help=f"{size}, pixels (%(default)s)")
    add("--crop", type=int, help=f"edge of the centre crop, pixels (default: {crop})")
    add("--val", type=float, default=defaults.val, help="share of validation samples (%(default)s)")
    add("--jobs", type=int, help="worker processes (default: the cores this process may use)")
    on_bad = f"bad images, all named in {FILE}: {STOP} with no index, or {SKIP} them (%(default)s)"
    add("--on-bad", default=STOP, help=on_bad)
    limit = f"the most to skip (default: {SHARE:.0%}% of the samples, at least {AT_LEAST})"
    add("--bad-limit", type=int, metavar="N", help=limit)


def add_asked(parser: Parser) -> None:
    """The flags that say how a source's labels are read."""
    add = parser.add_argument
    add("--labels", type=Path, metavar="TABLE", help="a table of labels: csv, jsonl, parquet, txt")
    add("--columns", metavar="A,B", help="its columns that become attributes (default: all that can)")
    add("--key", metavar="COLUMN", help="its column with the images' names (default: found out)")
    add("--bins", type=int, help="numbers of many values become so many quantiles (default: left out)")
    add("--depth", type=int, help="levels of class folders (1)")
    add(
        "--image-field",
        metavar="A,B",
        help="endings of the images in tars, where a sample has several, or parquet's column",
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """What the bytes of the packed folder depend on."""
    return Settings(
        size=args.size, crop=args.crop, image=args.image, shard_size=args.shard_size, val=args.val
    )


def part_of(args: argparse.Namespace) -> Part | None:
    """Which part of the pack is asked for; None for the whole."""
    if args.part is None:
        return None
    from shards.packing.parts.part import Part  # pydantic: --help does without

    return Part.parse(args.part)


def on_bad_of(args: argparse.Namespace) -> OnBad:
    """What is done about bad images."""
    return OnBad(args.on_bad, args.bad_limit)


def asked_of(args: argparse.Namespace) -> Asked:
    """How the source is to be read."""
    return Asked(args.labels, columns_of(args), args.key, args.bins, args.depth, args.image_field)


def columns_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The columns or fields that ``--columns`` names."""
    return tuple(name for name in (args.columns or "").split(",") if name)


def source_of(args: argparse.Namespace) -> Path | tuple[str, ...]:
    """What is to be packed: a path, or what names several tars."""
    first, *others = args.source
    alone = not others and not is_url(first) and (is_there(first) or "{" not in first)
    return Path(first) if alone else tuple(args.source)
