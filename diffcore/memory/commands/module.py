"""plan TARGET: what training any network takes on a rank."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffbase.files import check_writable
from diffbase.line import say
from diffcore.memory.commands.flags import CARD, card, outside

PROG = "python -m diffcore.memory plan"
WORDS = """What training a network takes on a rank, at the moments of a step.

TARGET is package.module:function, which makes a torch.nn.Module, or a folder with config.json of a network
of diffusers or transformers. It runs on fake tensors: no weights, no data, no GPU. docs/memory-any.md.
"""


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    result = cli.Parser(prog=prog, description=WORDS, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("target", help="package.module:function, or a folder with config.json")
    shape = "NAME=DTYPE[B,3,64,64] each, or without NAME by position; B is the micro batch"
    add("--inputs", nargs="+", default=[], metavar="INPUT", help=shape)
    add("--length", type=cli.between(1, 2**20), help="tokens, of a library's usual inputs")
    add("--side", type=cli.between(1, 2**16), help="edge of images or latents, of a library's usual inputs")
    add("--loss", metavar="MODULE:FUNCTION", help="of output and inputs (its own, or a mean of squares)")
    optimizers = "a name, or module:class (adamw); any other word lists the names"
    add("--optimizer", default="adamw", help=optimizers)
    add("--strategy", default="plain", help="plain, ddp, fsdp2, zero0 to zero3")
    add("--precision", default="fp32", help="fp32, bf16, fp16, pure-bf16")
    add("--checkpointing", action="store_true", help="as the library switches it on")
    add("--micro-batch", type=cli.between(1, 2**20), default=1, help="samples of a forward call")
    add("--accumulation", type=cli.between(1, 2**20), default=1, help="forward calls of a step")
    add("--world", type=cli.between(1, 2**20), default=1, help="number of ranks")
    add("--rank", type=int, default=0, help="the rank that is planned (shares differ little)")
    add("--offload", default="none", help="none, optimizer, parameters: of ZeRO")
    add("--ema", action="store_true", help="an fp32 average of the weights beside them")
    add("--deepspeed", type=Path, metavar="FILE", help="DeepSpeed's JSON: bucket sizes")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: no CUDA allocator")
    add("--gpu", type=card, help=f"does it fit this card, and what does if not: {CARD}")
    add("--largest", action="store_true", help="with --gpu: the largest micro batch, too")
    add("--calibration", metavar="GPU", help="NVML's name of a GPU that was measured, or its JSON")
    add("--out", type=Path, help="folder for anatomy.json and report.html")
    cli.add_answer(result)
    return result


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Print the plan of a network; InputError where it cannot be planned."""
    given = parser(prog).parse_args(argv)
    if given.largest and given.gpu is None:
        raise InputError("--largest needs --gpu, such as 24GB")
    if given.gpu is not None and given.device == "cpu":
        raise InputError("--gpu does not go with --device cpu")
    if given.out:
        check_writable(given.out)

    from diffcore.memory import report, tables
    from diffcore.memory.modules import asked

    with cli.answer(given) as give:
        anatomy = asked.anatomy(given, outside(given))
        tables.show(anatomy)
        if given.out:
            say(f"report: {report.save(given.out, anatomy)}")
        give(anatomy)
