"""The flags of the box's command."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffbase.cli import InputError, Parser

DEFAULT = Path("~/.cache/diffcore/box")
WORDS = """A real Slurm on this one machine, to try and to test with.

munge, slurmctld, slurmdbd on MariaDB and a slurmd per node, of Debian's packages, all under one folder: own
sockets, own key, own ports on loopback. Other services of the machine are not touched; ``down`` ends what
``up`` and its jobs started and removes the folder. Needs root, not systemd. See docs/slurm-box.md.
"""


def parser(prog: str) -> Parser:
    """``up``, ``down``, ``status`` and what tests do to a box."""
    common = Parser(add_help=False)
    common.add_argument("--dir", type=Path, default=DEFAULT, help="the box's folder (default: %(default)s)")
    parser = Parser(prog=prog, description=WORDS, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", parents=[common], help="start it, or what of it does not run")
    up.add_argument("--nodes", type=int, default=2, help="nodes n1, n2, ... (default: %(default)s)")
    up.add_argument("--gpus", type=int, default=2, help="pretended GPUs per node (default: %(default)s)")
    up.add_argument("--cpus", type=int, help="CPUs that a node claims (default: 2 per GPU)")
    up.add_argument(
        "--no-accounting", action="store_true", help="no slurmdbd and no database; sacct says nothing"
    )
    up.add_argument("--bind", action="store_true", help="tasks run on their own cores only (--cpu-bind)")
    up.add_argument("--plain", action="store_true", help="no namespaces, as where they are not permitted")
    commands.add_parser(
        "down", parents=[common], help="end it and its jobs' processes, and remove its folder"
    )
    commands.add_parser(
        "status", parents=[common], help="daemons, nodes and jobs; exit code 1 if not all is well"
    )
    commands.add_parser("env", parents=[common], help='for a shell: eval "$(python slurm/box.py env)"')
    kill = commands.add_parser(
        "kill-node", parents=[common], help="SIGKILL to a node's slurmd, as if it crashed"
    )
    kill.add_argument("node")
    kill.add_argument("--with-jobs", action="store_true", help="and to everything that runs on the node")
    start = commands.add_parser("start-node", parents=[common], help="start a node's slurmd again")
    start.add_argument("node")
    return parser


def check(flags: argparse.Namespace) -> None:
    """InputError for a count out of range."""
    if flags.command == "up":
        for name, least in (("nodes", 1), ("gpus", 0), ("cpus", 1)):
            if (value := getattr(flags, name)) is not None and not least <= value <= 64:
                raise InputError(f"--{name} {value}: from {least} to 64")
