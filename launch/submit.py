"""python launch/submit.py --nodes 2 --gpus-per-node 4 --config configs/avatar.yaml --cluster NAME [...]

Puts a run on a cluster: checks the config, makes the run folder, and submits. The same command goes on with
the same run. ``--dry-run`` prints the sbatch file and does nothing. docs/slurm.md has the whole story.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    # Run by path: Python put launch/ first, whose names must not shadow installed packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from diffbase import cli
from diffbase.cli import InputError, Parser
from diffcore.config import configure
from diffcore.config.tree import Config
from launch import cluster as clusters
from launch import registry
from launch.cluster import Cluster
from launch.ranks import cpu_ranks
from launch.spec import JobSpec, from_flags


def parser() -> Parser:
    p = Parser(
        prog="submit.py",
        description="Submit a training run. Other arguments override the config (--optimizer.lr 1e-4); "
        "diffcore/train.py --help lists them.",
        allow_abbrev=False,
    )
    p.add_argument("--config", type=Path, metavar="FILE", required=True, help="the run's YAML (configs/)")
    p.add_argument(
        "--cluster", metavar="NAME", help="profile in slurm/profiles, or its path; local: this machine"
    )
    size = p.add_argument_group("size")
    size.add_argument("--nodes", default="1", metavar="N", help="nodes; 1-2: wants 2, goes on with 1 (1)")
    size.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs a node, one rank each (0: CPU)")
    size.add_argument(
        "--tasks-per-node", type=int, metavar="N", help="ranks a node where there is no GPU (1)"
    )
    size.add_argument("--cpus-per-task", type=int, metavar="N", help="cores a rank (the profile's)")
    size.add_argument("--time", metavar="T", help="time limit: minutes or [D-]HH:MM:SS (the profile's)")
    where = p.add_argument_group("instead of the profile's")
    for name in ("partition", "account", "qos", "constraint"):
        where.add_argument(f"--{name}", metavar="X")
    where.add_argument("--exclude", metavar="A,B", help="nodes to leave out")
    how = p.add_argument_group("how")
    how.add_argument("--name", help="name in the queue (the run folder's)")
    how.add_argument("--restarts", type=int, default=20, metavar="N", help="failures that are retried (20)")
    how.add_argument("--after", metavar="JOB", help="start when JOB has ended")
    how.add_argument("--sweep", type=Path, metavar="FILE", help="one job array over the values in FILE")
    how.add_argument("--parallel", type=int, default=4, metavar="N", help="jobs of a sweep at once (4)")
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
    return p


def main(argv: Sequence[str] | None = None) -> None:
    flags, overrides = parser().parse_known_args(argv)
    check_names(overrides)
    here = "SLURM_JOB_ID" in os.environ and not flags.queue and flags.cluster != clusters.LOCAL
    cluster = choose_cluster(flags, here)
    config = configure.parse(["--config", str(flags.config), *overrides], prog="submit.py")
    bad = [] if cluster.is_local else list(registry.excluded(cluster.name))
    spec = from_flags(flags, cluster, default_name(config), here, bad)

    # Submitting knows submitit, which takes a tenth of a second to load: after the mistakes above.
    from launch import fits, submission, sweep

    points = sweep.load(flags.sweep, flags.config, overrides) if flags.sweep else [sweep.Point(config)]
    for point in points:
        check(point.config, spec, strict=not flags.dry_run)
    if bad:
        print(f"left out, because they failed a preflight: {', '.join(bad)}", file=sys.stderr)

    if not flags.dry_run:
        for point in points:
            submission.refuse_second(point.config.run, spec)
        if not (flags.force or flags.test_only):
            fits.check([point.config for point in points], spec)
    if flags.dry_run:
        print(submission.text(points, spec, config.run), end="")
    elif flags.test_only:
        print(submission.test_only(points, spec, config.run))
    else:
        code = submission.submit(points, spec, config.run, here, flags.follow)
        if code:
            sys.exit(code)


def check_names(overrides: Sequence[str]) -> None:
    """A mistyped flag of ours must not be answered with the config's names."""
    own = [option for action in parser()._actions for option in action.option_strings]
    for argument in overrides:
        flag = argument.split("=")[0]
        if flag.startswith("--") and "." not in flag and flag[2:] not in Config.model_fields:
            near = difflib.get_close_matches(flag, own, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(own)}"
            raise InputError(f"unknown argument {flag!r}; {hint}")


def choose_cluster(flags: argparse.Namespace, here: bool) -> Cluster:
    """The profile; on one machine without a size, all GPUs or some ranks that share its cores."""
    cluster = clusters.choose(flags.cluster)
    if cluster.is_local:
        if flags.gpus_per_node is None and flags.tasks_per_node is None:
            from diffbase.nvml import count_gpus

            flags.gpus_per_node = count_gpus()
            flags.tasks_per_node = flags.gpus_per_node or cpu_ranks()
        if flags.after or flags.test_only or flags.sweep:
            raise InputError("cluster local has no queue: --after, --sweep and --test-only need Slurm")
    if here and flags.sweep:
        raise InputError("--sweep is a job array of its own; inside an allocation add --queue")
    return cluster


def default_name(config: Config) -> str:
    """The run folder's name, as far as a job may bear it."""
    name = "".join(c if c.isalnum() or c in "_.-" else "-" for c in config.run.name)[:100]
    return name if name[:1].isalnum() else f"run{name}"


def check(config: Config, spec: JobSpec, strict: bool) -> None:
    """What the nodes would find wrong, as InputErrors; missing shards are one only with ``strict``."""
    for nodes in sorted({spec.nodes_min, spec.nodes}):
        config.batch.split(nodes * spec.tasks_per_node)
    if isinstance(config.data.path, str):  # a URL: the nodes fetch it
        return
    if not strict and not (config.data.path / "index.json").exists():
        print(f"warning: data.path: {config.data.path} holds no index.json; seen from here", file=sys.stderr)
        return
    from diffcore.runs import run_folder
    from shards.table import Index

    index = Index.load(config.data.path)
    for split in index.splits.values() if strict else ():
        for shard in split.shards:
            path = config.data.path / shard.name
            size = path.stat().st_size if path.exists() else None
            if size != shard.bytes:
                said = "is missing" if size is None else f"has {size} bytes, the index says {shard.bytes}"
                raise InputError(f"data.path: {path} {said}; python -m shards.verify tells more")
    run_folder.check(config, run_folder.data_record(index))


if __name__ == "__main__":
    cli.run(main)
