"""python -m diffcore.diffusion.show --config configs/demo.yaml --image cs0.png --out forward.png

Looks at a noise schedule before anything is trained: the picture at twelve noise levels, and log10 of the
signal-to-noise ratio over all levels, in one PNG. What is likely to hurt is printed. Overrides as in
training: ``--diffusion.timesteps 500 --diffusion.beta_end 0.2``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffcore.config import configure


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see ``--help``."""
    parser = cli.Parser(prog="python -m diffcore.diffusion.show", add_help=False, allow_abbrev=False)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--out", type=Path)
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    own, rest = parser.parse_known_args(words)
    if own.image is None or own.out is None:
        raise InputError("--image PICTURE and --out FILE.png are needed")
    config = configure.parse(rest)

    from diffbase.page import pictures
    from diffcore.diffusion import forward_process
    from diffcore.diffusion.schedule import NoiseSchedule

    schedule = NoiseSchedule.of(config.diffusion)
    pictures.save_png(forward_process.whole(schedule, own.image), own.out)
    print(f"{own.out}: {schedule.timesteps} levels, {schedule.wasted:.1%} of them without any image")
    for line in schedule.warnings:
        print(line)


if __name__ == "__main__":
    cli.run(main)
