"""A judge's record and weights: judge.json, judge.safetensors."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffbase.cli import InputError
from diffcore.evaluation.judging import judge
from shards.schema import Attribute
from tests.support.fuzz.target import Target

SCHEMA = (Attribute("hair", 3), Attribute("eyes", 2))
ROW = {"hits": 3, "count": 4, "share": 0.75, "low": 0.3, "high": 0.95}
RECORD: dict[str, Any] = {
    "fingerprint": "0" * 64, "schema": [{"name": a.name, "variants": a.variants} for a in SCHEMA],
    "size": 8, "width": 2, "features": 3, "readable": ["hair"],
    "accuracy": {a.name: ROW for a in SCHEMA}, "mean": {"mean": 0.75, "low": 0.3, "high": 0.95},
}  # fmt: skip
WORDS = [
    b'"size": [[1]]',
    b'"width": 1000000',
    b'"size"',
    b'"width"',
    b'"features"',
    b'"variants"',
    b'"I64"',
    b"[8]",
]


def target() -> Target:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        judge.save(Path(name), judge.JudgeNet(SCHEMA, 8, 2, 3), RECORD)
        record, weights = ((Path(name) / f"judge.{kind}").read_bytes() for kind in ("json", "safetensors"))
    images = np.zeros((1, 8, 8, 3), np.uint8)

    def feed(data: bytes, folder: Path) -> object:
        if data[:1] == b"{":
            (folder / "judge.json").write_bytes(data)
            (folder / "judge.safetensors").write_bytes(weights)
        else:
            tree = json.loads(record)
            (folder / "judge.json").write_bytes(record)
            (folder / "judge.safetensors").write_bytes(data)
            try:
                judge.load(folder)
                assert data == weights
            except InputError:
                assert data != weights
            tree["sha256"] = hashlib.sha256(data).hexdigest()  # as only a program writes one
            (folder / "judge.json").write_text(json.dumps(tree))
        found = judge.load(folder)
        assert all(name in found.accuracy for name in found.readable)
        found.read(images)
        return found

    return Target([record, weights], feed, WORDS)
