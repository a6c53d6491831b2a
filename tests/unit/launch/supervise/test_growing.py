"""A job that has taken another over with fewer nodes grows again where it would be queued again."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.config.tree import Batch
from launch.ask import fewer_nodes
from launch.ask.profile import Cluster
from launch.ask.spec import JobSpec
from launch.job import registry
from launch.scheduler import client
from launch.supervise import takeover
from launch.supervise.supervisor import Supervisor

CONFIG = REPOSITORY / "configs" / "demo-adamw.yaml"  # its batch of 24 divides among 3 ranks
BATCH: Batch = configure.load(CONFIG).batch


def spec_of(nodes: int, wanted: int | None, fewest: int = 1, **more: Any) -> JobSpec:
    tree = {"cluster": Cluster(name="c"), "job": "j", "nodes": nodes, "nodes_min": fewest, "minutes": 60}
    tree |= {"tasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": 1, "nodes_wanted": wanted}
    return JobSpec.model_validate(tree | more)


def ask(
    patch: pytest.MonkeyPatch,
    spec: JobSpec,
    idle: list[str],
    *,
    state: str = "RUNNING",
    avoid: tuple[str, ...] = (),
    out: dict[str, str] | None = None,
    down: tuple[str, ...] = (),
) -> tuple[str | None, list[tuple[int, JobSpec]]]:
    """What ``grow`` says of a job on n0, n1, ..., and what it submits."""
    made: list[tuple[int, JobSpec]] = []

    def succeed(place: Any, code: Any, where: Any, spec: JobSpec, successor: Any, nodes: int) -> str:
        made.append((nodes, spec))
        return "77"

    patch.setattr(takeover, "succeed", succeed)
    patch.setattr(client, "state_of", lambda job: client.State(state, 3, "", "p"))
    patch.setattr(client, "idle_nodes", lambda partition: idle)
    patch.setattr(client, "lost_among", lambda nodes: [node for node in nodes if node in down])
    patch.setattr(registry, "excluded", lambda cluster: out or {})
    where: Any = SimpleNamespace(job="5", restart=3, nodes=tuple(f"n{k}" for k in range(spec.nodes)))
    place: Any = SimpleNamespace(config=CONFIG)
    return takeover.grow(place, Path("code"), where, spec, lambda _: None, avoid), made


@given(nodes=st.integers(1, 8), more=st.integers(0, 8), idle=st.integers(0, 20), bad=st.integers(0, 3))
def test_it_grows_to_the_most_that_there_are_up_to_what_was_wanted(
    nodes: int, more: int, idle: int, bad: int
) -> None:
    wanted, avoid = nodes + more, tuple(f"n{k}" for k in range(min(bad, nodes)))
    free = [*(f"i{k}" for k in range(idle)), "n0"]  # a node of its own may be listed too
    with pytest.MonkeyPatch.context() as patch:
        line, made = ask(patch, spec_of(nodes, wanted), free, avoid=avoid)
    best = fewer_nodes.fitting([BATCH], 1, 1, wanted, nodes - len(avoid) + idle)
    if best is None or best <= nodes:
        assert (line, made) == (None, [])
    else:
        assert line == f"nodes are free again: job 77 goes on with {best} of {wanted} nodes"
        [(asked, spec)] = made
        assert asked == best and set(spec.exclude) == set(avoid)


@pytest.mark.parametrize(
    ("spec", "state"),
    [
        (spec_of(1, None, 1), "RUNNING"),
        (spec_of(2, 2), "RUNNING"),
        (spec_of(1, 2), "COMPLETING"),
        (spec_of(1, 2, requeue=False), "RUNNING"),
        (spec_of(1, 2, cluster=Cluster(name="c", constraint="a100")), "RUNNING"),
        (spec_of(1, 2, cluster=Cluster.model_validate({"name": "c", "gpus": {"type": "a100"}})), "RUNNING"),
        (spec_of(1, 2, cluster=Cluster(name="c", sbatch={"nodelist": "n[1-9]"})), "RUNNING"),
    ],
    ids=["as submitted", "whole", "over", "nobody queues it", "features", "kind of GPU", "names"],
)
def test_otherwise_it_does_not(monkeypatch: pytest.MonkeyPatch, spec: JobSpec, state: str) -> None:
    assert ask(monkeypatch, spec, ["i0", "i1"], state=state) == (None, [])


@pytest.mark.parametrize(
    ("avoid", "out", "down"), [(("n1",), {}, ()), ((), {"n1": "a bad disk"}, ()), ((), {}, ("n1",))]
)
def test_what_is_lost_or_left_out_is_no_node_to_grow_by(
    monkeypatch: pytest.MonkeyPatch, avoid: tuple[str, ...], out: dict[str, str], down: tuple[str, ...]
) -> None:
    spec = spec_of(2, 4)
    assert ask(monkeypatch, spec, ["i0"], avoid=avoid, out=out, down=down) == (None, [])  # 1 and 1
    line, [(nodes, following)] = ask(monkeypatch, spec, ["i0", "i1"], avoid=avoid, out=out, down=down)
    assert line is not None and nodes == 3
    assert following.exclude == (() if down else ("n1",))  # Slurm knows itself which are down


@pytest.mark.parametrize("fails", ["record", "cancel"])
def test_once_another_job_is_submitted_this_one_is_not_queued_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: str
) -> None:
    after: Any = SimpleNamespace(config=tmp_path / "config.yaml", live=tmp_path / "live", folder=tmp_path)

    def failing(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("scancel", 10) if fails == "cancel" else OSError(28, "full")

    monkeypatch.setattr(takeover.folder, "create", lambda run, group: after)
    monkeypatch.setattr(takeover.folder, "write_spec", lambda place, spec: None)
    monkeypatch.setattr(takeover, "record", failing if fails == "record" else lambda *_, **__: None)
    monkeypatch.setattr(client, "cancel", failing if fails == "cancel" else lambda *_: None)
    submitted: Any = SimpleNamespace(submit=lambda task: SimpleNamespace(job_id=9))
    monkeypatch.setattr(takeover, "Sbatch", lambda *_: submitted)
    where: Any = SimpleNamespace(job="5")
    place: Any = SimpleNamespace(run=tmp_path, config=CONFIG)
    said = takeover.succeed(place, tmp_path, where, spec_of(2, None), lambda _: None, 1)
    assert said.startswith("9 (job 5 was not cancelled: ")


def test_a_successor_knows_what_the_run_was_submitted_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[JobSpec] = []
    after: Any = SimpleNamespace(config=tmp_path / "config.yaml", live=tmp_path / "live", folder=tmp_path)
    monkeypatch.setattr(takeover.folder, "create", lambda run, group: after)
    monkeypatch.setattr(takeover.folder, "write_spec", lambda place, spec: written.append(spec))
    monkeypatch.setattr(takeover, "record", lambda *_, **__: None)
    monkeypatch.setattr(client, "cancel", lambda *_: None)
    submitted: Any = SimpleNamespace(submit=lambda task: SimpleNamespace(job_id=9))
    monkeypatch.setattr(takeover, "Sbatch", lambda *_: submitted)
    place: Any = SimpleNamespace(run=tmp_path, config=CONFIG)
    where: Any = SimpleNamespace(job="5")
    spec = spec_of(4, None)
    for nodes in (2, 1, 3):  # shrinks, and again, and grows
        assert takeover.succeed(place, tmp_path, where, spec, lambda _: None, nodes) == "9"
        (tmp_path / "live").rmdir()
        spec = written[-1]
        assert (spec.nodes, spec.nodes_wanted, spec.takes_over) == (nodes, 4, "5")


@pytest.mark.parametrize("asked", [0, 15])
def test_where_slurm_takes_none_or_wants_the_nodes_the_job_is_queued_again(
    monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    def refused(*_: Any) -> str:
        raise refusals[0]

    said: list[str] = []
    monkeypatch.setattr(takeover, "grow", refused)
    supervisor: Any = SimpleNamespace(
        life=SimpleNamespace(asked=asked, place=None), code=None, where=None, spec=None, successor=None,
        say=said.append,
    )  # fmt: skip
    for error in (RuntimeError("sbatch: error: no"), InputError("no"), OSError("no")):
        said.clear()
        refusals = [error]
        assert Supervisor._elsewhere(supervisor, (), ()) is None
        assert said == ([] if asked else [f"no job with other nodes: {error}"])
