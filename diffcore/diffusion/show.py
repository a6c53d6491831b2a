"""python -m diffcore.diffusion.show --config configs/demo.yaml --image cs0.png --out forward.png

Looks at a noise schedule before anything is trained: the picture at twelve noise levels, and log10 of the
signal-to-noise ratio over all levels, in one PNG. What is likely to hurt is printed. Overrides as in
training: ``--diffusion.timesteps 500 --diffusion.beta_end 0.2``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.line import say
from diffcore.config import configure

PROG = "python -m diffcore.diffusion.show"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's own flags; others override the config."""
    parser = cli.Parser(prog=prog, description=(__doc__ or "").split("\n\n", 1)[1], allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help=configure.WHICH)
    parser.add_argument("--image", type=Path, required=True, metavar="PICTURE", help="what noise is put on")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture to write")
    cli.add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    own, rest = parser(prog).parse_known_args(argv)
    config = configure.parse(["--config", str(own.config), *rest], prog)

    from diffbase.page import pictures
    from diffcore.diffusion import forward_process
    from diffcore.diffusion.schedule import NoiseSchedule

    schedule = NoiseSchedule.of(config.diffusion)
    pictures.save_png(forward_process.whole(schedule, own.image), own.out)
    with cli.answer(own) as give:
        say(f"{own.out}: {schedule.timesteps} levels, {schedule.wasted:.1%} of them without any image")
        for line in schedule.warnings:
            say(line)
        give({"timesteps": schedule.timesteps, "wasted": schedule.wasted, "warnings": schedule.warnings})


if __name__ == "__main__":
    cli.run(main)
