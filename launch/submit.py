"""python launch/submit.py --nodes 2 --gpus-per-node 4 --config configs/avatar.yaml --cluster NAME [...]

Puts a run on a cluster: checks the config, makes the run folder, and submits. The same command goes on with
the same run. ``--dry-run`` prints the sbatch file and does nothing. docs/slurm.md has the whole story.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # Run by path: Python put launch/ first, whose names must not shadow installed packages.
    # With PYTHONSAFEPATH it put nothing there.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from diffbase import cli
from diffbase.line import say
from diffcore.config import configure
from launch.ask import profile
from launch.ask.fewer_nodes import without_excluded
from launch.ask.flags import check_names, parser
from launch.ask.request import check, choose_cluster, default_name
from launch.ask.spec import from_flags
from launch.job import registry

PROG = "submit.py"


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    flags, overrides = parser(prog).parse_known_args(argv)
    check_names(overrides)
    if flags.json and flags.follow:
        raise cli.InputError("--json is one answer: without --follow")
    with cli.answer(flags) as give:
        code = _submit(flags, overrides, prog, give)
    if code:
        sys.exit(code)


def _submit(
    flags: argparse.Namespace, overrides: Sequence[str], prog: str, give: Callable[[Any], None]
) -> int:
    """What the flags ask for; returns the exit code."""
    here = "SLURM_JOB_ID" in os.environ and not flags.queue and flags.cluster != profile.LOCAL
    cluster = choose_cluster(flags, here)
    config = configure.parse(["--config", str(flags.config), *overrides], prog=prog)
    bad = [] if cluster.is_local else list(registry.excluded(cluster.name))
    spec = from_flags(flags, cluster, default_name(config), here, bad, config.trust == "group")

    # Submitting knows submitit, which takes a tenth of a second to load: after the mistakes above.
    from launch.ask import fits, sweep
    from launch.auto import choose as auto
    from launch.hand_over import submission

    points = sweep.load(flags.sweep, flags.config, overrides) if flags.sweep else [sweep.Point(config)]
    spec, promised = spec if here else without_excluded(spec, [point.config.batch for point in points]), None
    if flags.auto:
        points, spec, promised = auto.choose(flags, points, spec, overrides, here)
    for point in points:
        check(point.config, spec, strict=not flags.dry_run)
    if bad:
        say(f"left out, because they failed a preflight: {', '.join(bad)}", error=True)

    if not flags.dry_run:
        for point in points:
            submission.refuse_second(point.config.run, spec)
        if not (flags.force or flags.test_only or flags.auto):
            fits.check([point.config for point in points], spec)
    return submission.carry_out(flags, points, spec, config.run, here, give, promised)


if __name__ == "__main__":
    cli.run(main)
