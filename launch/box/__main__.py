"""python -m launch.box up --nodes 2 --gpus 2: a real Slurm on this machine; ``slurm/box.py`` is the same."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence

from diffbase.cli import InputError, run
from diffbase.line import say
from launch.box import flags
from launch.box.daemons import Box

PROG = "python -m launch.box"
parser = flags.parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    args = parser(prog).parse_args(argv)
    flags.check(args)
    slurm = Box(args.dir)
    # A second Ctrl-C is not needed: daemons are in sessions of their own and stay for the next up or down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    export = f"export SLURM_CONF={shlex.quote(slurm.env['SLURM_CONF'])}"
    if args.command == "up":
        box = slurm.up(
            args.nodes, args.gpus, args.cpus, not args.no_accounting, not args.plain, bind=args.bind
        )
        say(f"# {box.nodes} nodes ({', '.join(box.names)}) with {box.gpus} GPUs each in {slurm.folder}")
        print("# for this shell:")
        say(export)
    elif args.command == "down":
        slurm.down()
    elif args.command == "status":
        sys.exit(not _status(slurm))
    elif args.command == "env":
        if slurm.settings() is None:
            raise InputError(f"no box in {slurm.folder}: python slurm/box.py up")
        say(export)
    elif args.command == "kill-node":
        slurm.kill_node(args.node, args.with_jobs)
    else:
        slurm.start_node(args.node)


def _status(slurm: Box) -> bool:
    """Print how the box does; whether all is well."""
    box = slurm.settings()
    if box is None:
        say(f"no box in {slurm.folder}")
        return False
    daemons = slurm.daemons(box)
    for name, pid in daemons.items():
        say(f"{name:10} {f'runs, pid {pid}' if pid else 'DOES NOT RUN'}")
    if daemons["slurmctld"]:
        say(slurm.ask("sinfo", "-N", "-o", "%N %P %T %G", check=False))
        say(slurm.ask("squeue", check=False))
    return all(daemons.values())


if __name__ == "__main__":
    run(main)
