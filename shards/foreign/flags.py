"""The command line of shards.index: its flags, and what they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffbase.cli import Parser, add_answer
from shards.packing.flags import add_prepared, columns_of
from shards.packing.plan import Settings
from shards.sources.base import Asked


def parser(prog: str) -> Parser:
    """The flags."""
    parser = Parser(
        prog=prog,
        description="Write an index of WebDataset tars that somebody else made. Nothing is copied: a run "
        "trains on the tars where they lie, here or behind an address.",
    )
    add = parser.add_argument
    add(
        "tars", nargs="+", metavar="TARS", help="tars, folders of them, patterns as {000..010}.tar, addresses"
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the index")
    add_prepared(parser, "edge of the images as they are read", "the shorter side")
    add(
        "--columns",
        metavar="A,B",
        help="what become attributes: class, txt, json.FIELD (default: all that can)",
    )
    add("--bins", type=int, help="numbers of many values become so many quantiles (default: left out)")
    add("--image-field", metavar="A,B", help="endings of the images, where a sample has several")
    add("--check", action="store_true", help="decode every image now, not its head alone")
    add_answer(parser)
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """How the images are prepared and split."""
    return Settings(size=args.size, crop=args.crop, val=args.val)


def asked_of(args: argparse.Namespace) -> Asked:
    """How the tars are read."""
    return Asked(columns=columns_of(args), bins=args.bins, image_field=args.image_field)
