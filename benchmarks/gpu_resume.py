"""Whether a run that stopped and went on is the run that did not, to the bit.

    python benchmarks/gpu_resume.py [--steps 12] [--channels-last]

Trains a small network under ZeRO-0 to 3 in fp32 and bf16 (``train.deterministic``) once in one sitting and
once in two, and compares every tensor of the last checkpoints, on a GPU where there is one. Prints one JSON
object: for each cell the share of tensors that are equal bit for bit, and the largest difference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import load_file

from tests.support import small_set
from tests.support.numerics import CONFIG

REPOSITORY = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--zero", type=int, nargs="+", default=[1, 3], choices=range(4))
    parser.add_argument("--channels-last", action="store_true", help="with engine.channels_last")
    a = parser.parse_args(argv)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = small_set.packed(folder / "set")
        for zero in a.zero:
            for precision in ("fp32", "bf16"):
                cell = f"zero{zero}-{precision}"
                config = folder / f"{cell}.yaml"
                config.write_text(
                    CONFIG.replace("PACKED", str(data)).replace(
                        "engine: {",
                        f"engine: {{zero: {zero}, precision: {precision}, "
                        + "channels_last: true, " * a.channels_last,
                    )
                )
                whole, parts = folder / f"{cell}-whole", folder / f"{cell}-parts"
                train(config, whole, a.steps)
                train(config, parts, a.steps // 2)
                train(config, parts, a.steps)
                found[cell] = apart(whole, parts)
                print(cell, found[cell], file=sys.stderr, flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(json.dumps({"device": device, "steps": a.steps, "cells": found}))


def train(config: Path, run: Path, steps: int) -> None:
    words = ["--config", config, "--run", run, "--train.steps", steps, "--train.checkpoint_every", steps // 2]
    subprocess.run(
        [sys.executable, "diffcore/train.py", *map(str, words)],
        cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": path()}, check=True, stdout=sys.stderr,
    )  # fmt: skip


def path() -> str:
    return os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])


def apart(one: Path, other: Path) -> dict[str, float | int]:
    """Of the tensors of the newest checkpoints: how many, the share that is equal, the most they differ."""
    equal, most, count = 0, 0.0, 0
    newest = [sorted((run / "checkpoints").iterdir())[-1] for run in (one, other)]
    for file in sorted(newest[0].rglob("*.safetensors")):
        left, right = load_file(file), load_file(newest[1] / file.relative_to(newest[0]))
        for key, tensor in left.items():
            count += 1
            equal += torch.equal(tensor, right[key])
            most = max(most, float((tensor.double() - right[key].double()).abs().max()))
    return {"tensors": count, "equal": equal / count, "most_apart": most}


if __name__ == "__main__":
    main()
