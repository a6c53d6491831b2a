"""python slurm/box.py up --nodes 2 --gpus 2: a real Slurm on this one machine; ``launch/box`` is its code."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # With PYTHONSAFEPATH Python put nothing in the first place.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from diffbase.cli import run
from launch.box.__main__ import main

if __name__ == "__main__":
    run(lambda: main(prog="box.py"))
