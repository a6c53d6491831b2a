"""The flags of ``submit.py``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from diffbase.cli import InputError, Parser, add_answer
from diffcore.config.tree import Config

PARALLEL = 4
"""Jobs of a sweep at once."""


def parser(prog: str = "submit.py") -> Parser:
    """Ours alone; everything else on the command line overrides the config."""
    p = Parser(
        prog=prog,
        description="Submit a training run. Other arguments override the config (--optimizer.lr 1e-4); "
        "diffcore/train.py --help lists them.",
        allow_abbrev=False,
    )
    p.add_argument(
        "--config", type=Path, metavar="FILE", required=True, help="the run's YAML, or a name in configs/"
    )
    p.add_argument("--cluster", metavar="NAME", help="profile by name, or its path; local: this machine")
    size = p.add_argument_group("size")
    size.add_argument("--nodes", default="1", metavar="N", help="nodes; 1-2: wants 2, goes on with 1 (1)")
    size.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs per node, one rank each (0: CPU)")
    size.add_argument(
        "--tasks-per-node", type=int, metavar="N", help="ranks per node where there is no GPU (1)"
    )
    size.add_argument("--cpus-per-task", type=int, metavar="N", help="cores per rank (the profile's)")
    size.add_argument("--time", metavar="T", help="time limit: minutes or [D-]HH:MM:SS (the profile's)")
    where = p.add_argument_group("instead of the profile's")
    for name in ("partition", "account", "qos", "constraint"):
        where.add_argument(f"--{name}", metavar="X")
    where.add_argument("--exclude", metavar="A,B", help="nodes to leave out")
    how = p.add_argument_group("how")
    how.add_argument("--name", help="name in the queue (the run folder's)")
    how.add_argument(
        "--restarts", type=int, metavar="N", help="failures a day that are retried (20; or nodes / 20)"
    )
    how.add_argument("--after", metavar="JOB", help="start when JOB has ended")
    how.add_argument("--sweep", type=Path, metavar="FILE", help="one job array over the values in FILE")
    how.add_argument(
        "--parallel", type=int, default=PARALLEL, metavar="N", help="jobs of a sweep at once (4)"
    )
    how.add_argument(
        "--auto", action="store_true", help="choose ZeRO stage, micro batch and checkpointing by the memory "
        "plan and, of --nodes A-B, how many by the queue; flags that are given stay"
    )  # fmt: skip
    how.add_argument("--no-preflight", action="store_true", help="do not check the nodes first")
    how.add_argument(
        "--force", action="store_true", help="submit though the memory plan does not fit the profile's GPUs"
    )
    how.add_argument(
        "--queue", action="store_true", help="inside an allocation: submit a new job all the same"
    )
    how.add_argument("--dry-run", action="store_true", help="print the sbatch file; nothing is made")
    how.add_argument(
        "--test-only", action="store_true", help="ask Slurm when it would start; nothing is made"
    )
    how.add_argument("--follow", action="store_true", help="show rank 0's output until the job ends")
    add_answer(p)
    return p


def check_names(overrides: Sequence[str]) -> None:
    """A mistyped flag of ours must not be answered with the config's names."""
    own = [option for action in parser()._actions for option in action.option_strings]
    for argument in overrides:
        flag = argument.split("=")[0]
        if flag.startswith("--") and "." not in flag and flag[2:] not in Config.model_fields:
            near = difflib.get_close_matches(flag, own, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(own)}"
            raise InputError(f"unknown argument {flag!r}; {hint}")
