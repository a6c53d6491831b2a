"""python -m diffcore.evaluation.colors RUN [--samples 256]

Do the samples have the face and hair colour that was asked for? Read by the palette rule, without a network,
and printed beside its two controls: the same rule on real images (it should be right), and against shuffled
labels (it should fall to chance). For stand-in avatars only. Writes ``colors.json`` into the run folder.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffbase import cli
from diffbase.line import say
from diffcore.evaluation import flags
from diffcore.runs.figures import agreed
from diffcore.runs.sampling import sampling_of

PROG = "python -m diffcore.evaluation.colors"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = flags.parser(prog, __doc__)
    cli.add_run(parser)
    flags.add_samples(parser, 256, "images drawn")
    flags.add_data(parser)
    flags.add_out(parser)
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the run's)")
    parser.add_argument("--steps", type=int, help="network evaluations per image (default: the run's)")
    parser.add_argument("--sampler", help="sampler (default: the run's)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    arguments = parser(prog).parse_args(argv)
    arguments.run = cli.given_run(arguments)
    flags.check(arguments, least=1)
    out = flags.given_out(arguments)

    from diffcore.evaluation.studies import color_agreement
    from diffcore.runs.data import with_data
    from diffcore.runs.model import load_model

    model = with_data(load_model(arguments.run), arguments.data)
    color_agreement.check(arguments.run, model)
    sampling = sampling_of(model.config, arguments)
    settings = sampling.model_dump(include={"guidance", "steps", "sampler"})
    with cli.answer(arguments) as give:
        result = color_agreement.measure(out, model, sampling, arguments.samples, arguments.seed)
        for name, row in result.items():
            say(f"{name}: {agreed(row)}")
        give({"step": model.step, **settings, "agreement": result})


if __name__ == "__main__":
    cli.run(main)
