"""``--nodes 2-3`` where there are not as many: with how many a run goes on. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from diffbase.cli import InputError
from diffbase.line import say
from diffbase.machine import home
from diffcore.config.tree import Batch
from launch.ask.spec import JobSpec
from launch.scheduler import client


def fitting(
    batches: Sequence[Batch], tasks_per_node: int, fewest: int, wanted: int, available: int
) -> int | None:
    """The most nodes, of those there are, among whose ranks each global batch divides; None for too few."""
    for nodes in range(min(available, wanted), fewest - 1, -1):
        try:
            for batch in batches:
                batch.split(nodes * tasks_per_node)
        except InputError:
            continue
        return nodes
    return None


def without_excluded(spec: JobSpec, batches: Sequence[Batch]) -> JobSpec:
    """As many nodes as the partition has beside those that are left out: Slurm refuses a job that wants more.

    InputError where that is fewer than the run may have.
    """
    if spec.cluster.is_local or not spec.exclude:
        return spec
    partition = spec.cluster.partition or spec.cluster.sbatch.get("partition")
    known = set(client.nodes_of(None if partition is None else str(partition)))
    out = sorted(known & set(spec.exclude))
    left = len(known) - len(out)
    if not out or left >= spec.nodes:
        return spec
    nodes = fitting(batches, spec.tasks_per_node, spec.nodes_min, spec.nodes, left)
    if nodes is None:
        raise InputError(
            f"--nodes: {spec.nodes_min} wanted, and {left} are there without {', '.join(out)}, left out as "
            f"they failed: give fewer, or remove their lines from {home.state()}/excluded-{spec.cluster.name}"
            ".jsonl once they are well"
        )
    say(f"nodes: {nodes} of {spec.nodes}, because {', '.join(out)} is left out", error=True)
    return spec.model_copy(update={"nodes": nodes})
