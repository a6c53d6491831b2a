"""A file of weights and the card beside it, which says its hash: the weights' own damage comes after that."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import torch

from diffcore.runs.export import compact
from diffcore.runs.model import load_network
from diffcore.runs.source import find
from shards.schema import Attribute
from tests.support import tiny_run
from tests.support.fuzz.target import Target

SCHEMA = (Attribute("hair", 3), Attribute("eyes", 2))
WORDS = [
    b'"recipe"',
    b'"bytes"',
    b'"schema"',
    b'"variants"',
    b'"I8"',
    b'"BF16"',
    b'"scale/',
    b'"int8"',
    b"[8,8]",
]


def target() -> Target:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        run, out = tiny_run.write(Path(name) / "run", 5, schema=SCHEMA), Path(name) / "small.safetensors"
        compact(run, out, "int8")
        weights, card = out.read_bytes(), out.with_suffix(".json").read_bytes()

    def feed(case: bytes, folder: Path) -> object:
        file, told = folder / "small.safetensors", json.loads(card)
        if case[:1] == b"{":
            file.write_bytes(weights)
            file.with_suffix(".json").write_bytes(case)
        else:
            file.write_bytes(case)
            told |= {"bytes": len(case), "sha256": hashlib.sha256(case).hexdigest()}
            file.with_suffix(".json").write_text(json.dumps(told))
        return find(file).schema, load_network(file)

    return Target([card, weights], feed, WORDS)
