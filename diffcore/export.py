"""python -m diffcore.export RUN --out DIR [--checkpoint newest|best|STEP] [--sigma_rel 0.08]

Weights of a run for other programs: safetensors with the averaged and with the raw weights, the config, and a
model card. In Python

    from diffcore.export import load_network
    network = load_network("DIR")           # or which="raw"

gives the network back. Of a diffusers model DIR/unet also loads with UNet2DConditionModel.from_pretrained,
and DIR/tau.safetensors holds the projection of the attributes that feeds its cross-attention.

--sigma_rel makes the averaged weights anew, of any width, from the snapshots that a run with ema.posthoc
keeps (Karras et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffbase import cli
from diffbase.line import say

if TYPE_CHECKING:
    from torch import nn


PROG = "python -m diffcore.export"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = cli.Parser(prog=prog, description="Weights of a run for other programs.")
    parser.add_argument("run", type=Path, help=cli.RUN_HELP)
    parser.add_argument("--out", type=Path, required=True, help="folder to make, or file")
    parser.add_argument("--checkpoint", default="newest", help="newest, best, or a step")
    one = "the averaged weights as one small file, --out NAME.safetensors, with a card, NAME.json"
    parser.add_argument("--compact", choices=("bf16", "int8"), help=one)
    parser.add_argument("--licence", default="not stated", help="of a compact file, for its card")
    parser.add_argument("--about", default="", metavar="TEXT", help="the data in words, for its card")
    figures = "measured figures for its card (default: the run's quality.json and colors.json)"
    parser.add_argument("--figures", type=Path, action="append", default=[], metavar="JSON", help=figures)
    said = "width of the average, relative to the steps so far (default: the run's own ema)"
    parser.add_argument("--sigma_rel", type=float, metavar="WIDTH", help=said)
    cli.add_answer(parser, figures=False)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    arguments = parser(prog).parse_args(argv)

    from diffcore.runs.export import compact, export

    a = arguments
    with cli.answer(a, survive=True):
        if a.compact is None:
            export(a.run, a.out, a.checkpoint, a.sigma_rel)
            say(a.out)
        else:
            words = {"licence": a.licence, "about": a.about, "figures": a.figures}
            card = compact(a.run, a.out, a.compact, a.checkpoint, **words)
            lost = f"{card.error['mean']:.2f} of 255 on average, {card.error['max']:.0f} at most"
            say(f"{a.out}: {card.bytes:,} bytes, {card.parameters:,} parameters; images differ by {lost}")


def load_network(folder: Path | str, which: str = "ema") -> nn.Module:
    """The network of an export, in evaluation mode on the CPU; see ``models`` for what it takes and gives."""
    from diffcore.runs import model

    return model.load_network(folder, which)


if __name__ == "__main__":
    cli.run(main)
