"""python -m diffcore.sample RUN --set hair_color=blond --guidance 2 --samples 16 --out grid.png

Draws avatars with a run's newest complete checkpoint. What is not set is drawn at random; a JSON beside the
grid says the attributes of every cell. Reads safetensors and YAML only, and needs no DeepSpeed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli, line
from diffbase.cli import InputError
from diffcore.config.samplers import NAMES
from diffcore.runs.sampling import check_seed, parse_wanted, sampling_of

PROG = "python -m diffcore.sample"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = cli.Parser(prog=prog, description=(__doc__ or "").split("\n\n")[1])
    add = parser.add_argument
    cli.add_run(parser, "run folder of diffcore/train.py, a checkpoint or an export")
    add("--set", action="append", default=[], metavar="NAME=VARIANT", help="fix an attribute")
    add("--guidance", type=float, help="guidance scale; 0 unconditional, 1 plain conditional")
    add("--guidance-rescale", type=float, help="share of the contrast given back, 0 to 1")
    add("--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="t / (T - 1) where it acts")
    add("--clamp", action=argparse.BooleanOptionalAction, help="keep x_0 in images' range")
    add("--steps", type=int, help="steps of the sampler")
    add("--sampler", help=NAMES)
    add("--spacing", help="levels of the steps: auto, time, logsnr, rho")
    add("--eta", type=float, help="fresh noise of ddim, 0 to 1")
    add("--seed", type=int, default=0, help="of the noise and the attributes not set")
    add("--samples", "--count", type=int, dest="count", help="images")
    add("--weights", choices=("ema", "raw"), default="ema", help="which weights draw")
    add("--checkpoint", default="newest", help="newest, best or a step (default newest)")
    same = "rows of the same labels and noise: raw and EMA weights, each with guidance 1 and as set"
    add("--compare", action="store_true", help=same)
    add("--out", type=Path, required=True, help="the grid, a PNG; .json is put beside it")
    cli.add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    a = parser(prog).parse_args(argv)
    a.run = cli.given_run(a)
    _check(a)

    from diffcore.runs.grid import write_grid
    from diffcore.runs.model import load_model

    kinds = ("raw", "ema") if a.compare else (a.weights,)
    models = {weights: load_model(a.run, weights=weights, checkpoint=a.checkpoint) for weights in kinds}
    model = models[a.weights]
    sampling = sampling_of(model.config, a)
    wanted = parse_wanted(a.set, model.schema)
    scales = dict.fromkeys((1.0, sampling.guidance)) if a.compare else (sampling.guidance,)
    rows = [(weights, one, scale) for weights, one in models.items() for scale in scales]
    with cli.answer(a, survive=True) as give:
        count = write_grid(rows, sampling, wanted, a.seed, a.out, {"run": str(a.run), "step": model.step})
        line.say(f"{a.out}: {count} images, step {model.step}")
        settings = sampling.model_dump(mode="json")
        give({"out": a.out, "images": count, "step": model.step, "sampling": settings})


def _check(a: argparse.Namespace) -> None:
    from diffbase.page.pictures import check_png

    check_png(a.out)
    if a.out.resolve().parent == a.run.resolve():
        raise InputError(f"--out {a.out}: its JSON could replace one of the run's; use another folder")
    check_seed(a.seed)


if __name__ == "__main__":
    cli.run(main)
