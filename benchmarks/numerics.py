"""Every ZeRO stage and precision beside a plain PyTorch loop on the same batches, for some steps.

    python benchmarks/numerics.py [--ranks 2] [--steps 10]

Prints one JSON object: for each cell how far the first step and the last end from the plain loop's, and how
far apart two plain loops end that add their batch up in another order (tests/support/numerics.py). fp16 under
ZeRO-1 to 3 needs a GPU and is left out elsewhere.
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

from tests.support import small_set
from tests.support.numerics import DEVICE, STEPS, cells, compare, write

REPOSITORY = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count() or 2, choices=(1, 2, 4))
    parser.add_argument("--steps", type=int, default=STEPS)
    a = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = small_set.packed(folder / "set")
        paths = [write(folder, data, cell, n) for cell in cells(a.ranks) for n in (1, a.steps)]
        # fmt: off
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(a.ranks),
            "-m", "tests.support.train_all", *map(str, paths),
        ]
        # fmt: on
        env = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        subprocess.run(command, cwd=REPOSITORY, env=env, check=True, stdout=sys.stderr)
        found = {str(cell): compare(folder, cell, a.ranks, a.steps) for cell in cells(a.ranks)}
    print(json.dumps({"device": DEVICE.type, "ranks": a.ranks, "steps": a.steps, "cells": found}))


if __name__ == "__main__":
    main()
