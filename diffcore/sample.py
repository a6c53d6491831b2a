"""python -m diffcore.sample RUN --set hair_color=blond --guidance 2 --samples 16 --out grid.png

Draws avatars with a run's newest complete checkpoint. What is not set is drawn at random; a JSON beside the
grid says the attributes of every cell. Reads safetensors and YAML only, and needs no DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli, line
from diffcore.runs.sampling import (
    add_pretrained,
    add_settings,
    check_grid,
    check_seed,
    drawn_from,
    parse_wanted,
    sampling_of,
)

PROG = "python -m diffcore.sample"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = cli.Parser(prog=prog, description=(__doc__ or "").split("\n\n")[1])
    add = parser.add_argument
    cli.add_run(parser, "run folder of diffcore/train.py, a checkpoint, an export or a compact file")
    add_pretrained(parser)
    add("--set", action="append", default=[], metavar="NAME=VARIANT", help="fix an attribute")
    add_settings(parser)
    add("--seed", type=int, default=0, help="of the noise and the attributes not set")
    add("--samples", "--count", type=int, dest="count", help="images")
    add("--weights", choices=("ema", "raw"), default="ema", help="which weights draw")
    add("--checkpoint", default="newest", help="newest, best or a step (default newest)")
    same = "rows of the same labels and noise: raw and EMA weights, each with guidance 1 and as set"
    add("--compare", action="store_true", help=same)
    add("--each", metavar="NAME", help="a row for each variant of this attribute, else of the same labels")
    add("--out", type=Path, required=True, help="the grid, a PNG; .json is put beside it")
    cli.add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    a = parser(prog).parse_args(argv)
    a.run = drawn_from(a)
    check_grid(a.out, a.run)
    check_seed(a.seed)

    from diffcore.runs.grid import rows_of, write_grid
    from diffcore.runs.model import load_model

    kinds = ("raw", "ema") if a.compare else (a.weights,)
    models = {weights: load_model(a.run, weights=weights, checkpoint=a.checkpoint) for weights in kinds}
    model = models[a.weights]
    sampling = sampling_of(model.config, a)
    wanted = parse_wanted(a.set, model.schema)
    scales = tuple(dict.fromkeys((1.0, sampling.guidance))) if a.compare else (sampling.guidance,)
    rows = rows_of(models, scales, wanted, a.each)
    with cli.answer(a, survive=True) as give:
        count = write_grid(rows, sampling, a.seed, a.out, {"run": str(a.run), "step": model.step})
        line.say(f"{a.out}: {count} images, step {model.step}")
        settings = sampling.model_dump(mode="json")
        give({"out": a.out, "images": count, "step": model.step, "sampling": settings})


if __name__ == "__main__":
    cli.run(main)
