"""python -m diffcore.evaluation.points RUN [--samples 512] [--raw]

The quality of every kept checkpoint of a run, beside the loss it was reached with: the curve after the fact.
Writes points.json into the run folder. The same labels and noise at every checkpoint. Those that only an
interruption saved are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffbase import cli
from diffbase.line import say
from diffcore.evaluation import flags
from diffcore.runs.sampling import sampling_of

PROG = "python -m diffcore.evaluation.points"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = flags.parser(prog, __doc__)
    flags.add_run(parser, 512, "images per checkpoint")
    parser.add_argument("--raw", action="store_true", help="the raw weights too, not the EMA alone")
    parser.add_argument("--threads", type=cli.between(1, 1024), help="CPU threads (default: torch's)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    a = parser(prog).parse_args(argv)
    flags.check(a)

    import torch

    from diffcore.evaluation.studies import curve
    from diffcore.runs.source import config_of

    if a.threads:
        torch.set_num_threads(a.threads)
    config = config_of(a.run)
    flags.check_out(a.run)
    sampling = sampling_of(config, a)
    with cli.answer(a, survive=True) as give:
        points = curve.measure(a.run, sampling, a.judge, a.data, samples=a.samples, seed=a.seed, raw=a.raw)
        say(f"{a.run / curve.FILE}: {len(points)} points")
        give(points)


if __name__ == "__main__":
    cli.run(main)
