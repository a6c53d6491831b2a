"""python slurm/box.py up --nodes 2 --gpus 2: a real Slurm on this one machine, to try and to test with.

munge, slurmctld, slurmdbd on MariaDB and a slurmd per node, of Debian's packages, all under one folder: own
sockets, own key, own ports on loopback. Other services of the machine are not touched; ``down`` ends what
``up`` and its jobs started and removes the folder. Needs root, not systemd. See docs/slurm-box.md.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from diffbase.cli import InputError, Parser, run
from slurm.box_daemons import Box

DEFAULT = Path("~/.cache/diffcore/box")


def arguments() -> argparse.Namespace:
    """The command line. InputError for a count out of range."""
    common = Parser(add_help=False)
    common.add_argument("--dir", type=Path, default=DEFAULT, help="the box's folder (default: %(default)s)")
    parser = Parser(prog="box.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    args = parser.parse_args()
    if args.command == "up":
        for name, least in (("nodes", 1), ("gpus", 0), ("cpus", 1)):
            if (value := getattr(args, name)) is not None and not least <= value <= 64:
                raise InputError(f"--{name} {value}: from {least} to 64")
    return args


def status(slurm: Box) -> bool:
    """Print how the box does; whether all is well."""
    box = slurm.settings()
    if box is None:
        print(f"no box in {slurm.folder}")
        return False
    daemons = slurm.daemons(box)
    for name, pid in daemons.items():
        print(f"{name:10} {f'runs, pid {pid}' if pid else 'DOES NOT RUN'}")
    if daemons["slurmctld"]:
        print(slurm.ask("sinfo", "-N", "-o", "%N %P %T %G", check=False))
        print(slurm.ask("squeue", check=False))
    return all(daemons.values())


def main() -> None:
    """The command line; see ``--help``."""
    args = arguments()
    slurm = Box(args.dir)
    # A second Ctrl-C is not needed: daemons are in sessions of their own and stay for the next up or down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    export = f"export SLURM_CONF={shlex.quote(slurm.env['SLURM_CONF'])}"
    if args.command == "up":
        box = slurm.up(
            args.nodes, args.gpus, args.cpus, not args.no_accounting, not args.plain, bind=args.bind
        )
        print(f"# {box.nodes} nodes ({', '.join(box.names)}) with {box.gpus} GPUs each in {slurm.folder}")
        print("# for this shell:")
        print(export)
    elif args.command == "down":
        slurm.down()
    elif args.command == "status":
        sys.exit(not status(slurm))
    elif args.command == "env":
        if slurm.settings() is None:
            raise InputError(f"no box in {slurm.folder}: python slurm/box.py up")
        print(export)
    elif args.command == "kill-node":
        slurm.kill_node(args.node, args.with_jobs)
    else:
        slurm.start_node(args.node)


if __name__ == "__main__":
    run(main)
