"""With how many nodes a run may go on, and when a smaller job does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config.tree import Batch
from launch.ask.fewer_nodes import fitting, without_excluded
from launch.ask.profile import Cluster
from launch.ask.spec import JobSpec
from launch.job import folder
from launch.scheduler import client
from launch.supervise import takeover
from launch.supervise.environment import Layout


@given(st.integers(1, 4096), st.integers(1, 8), st.integers(1, 40), st.integers(0, 40), st.integers(0, 60))
def test_the_most_nodes_among_whose_ranks_the_batch_divides(
    size: int, tasks: int, fewest: int, more: int, available: int
) -> None:
    wanted = fewest + more
    fit = [n for n in range(fewest, min(wanted, available) + 1) if size % (n * tasks) == 0]
    assert fitting([Batch(size=size)], tasks, fewest, wanted, available) == max(fit, default=None)


def spec_of(low: int, high: int, **more: Any) -> JobSpec:
    return JobSpec.model_validate(
        {"cluster": Cluster(name="fake"), "job": "j", "nodes": high, "nodes_min": low, "tasks_per_node": 1,
         "gpus_per_node": 0, "cpus_per_task": 1, "minutes": 60} | more
    )  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "out", "nodes"),
    [
        (2, 3, ("n2",), 2),
        (2, 3, ("elsewhere",), 3),
        (2, 3, (), 3),
        (1, 3, ("n1", "n2"), 1),
        (2, 2, ("n2",), 2),  # there is another
        (2, 3, ("n1", "n2"), None),
        (3, 3, ("n2",), None),
    ],
)
def test_a_submission_wants_no_more_nodes_than_there_are_beside_those_left_out(
    low: int, high: int, out: tuple[str, ...], nodes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "nodes_of", lambda partition: ["n1", "n2", "n3"])
    spec, batch = spec_of(low, high, exclude=out), Batch(size=12)
    if nodes is None:
        with pytest.raises(InputError, match="left out"):
            without_excluded(spec, [batch])
        return
    got = without_excluded(spec, [batch])
    assert got == spec.model_copy(update={"nodes": nodes})


def test_where_slurm_says_nothing_as_many_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "nodes_of", lambda partition: [])
    spec = spec_of(3, 3, exclude=("n2",))
    assert without_excluded(spec, [Batch(size=12)]) is spec


@pytest.mark.parametrize(
    ("low", "idle", "state", "smaller"),
    [
        (2, [], ("RUNNING", 0), 2),
        (2, ["n4"], ("RUNNING", 0), None),  # there is another one: it is queued again
        (2, ["n2"], ("RUNNING", 0), 2),  # the one that is left out is none
        (3, [], ("RUNNING", 0), None),
        (2, [], ("CANCELLED", 0), None),
        (2, [], ("RUNNING", 1), None),
    ],
)
def test_a_smaller_job_goes_on_where_no_other_node_is_free(
    low: int, idle: list[str], state: tuple[str, int], smaller: int | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(client, "state_of", lambda job: client.State(*state, "n[1-3]", "p"))
    monkeypatch.setattr(client, "idle_nodes", lambda partition: idle)
    submitted: list[JobSpec] = []

    def submit(place: Any, code: Any, where: Any, spec: JobSpec, successor: Any, nodes: int) -> str:
        submitted.append(spec.model_copy(update={"nodes": nodes}))
        return "8"

    monkeypatch.setattr(takeover, "succeed", submit)
    place = folder.create(tmp_path / "run")
    place.config.write_text((REPOSITORY / "configs/demo-adamw.yaml").read_text())  # 24: 2 or 3 ranks
    (place.live / "7.0").mkdir(parents=True)
    where = Layout("7", "7.0", 0, 0, 3, 0, 1, 0, ("n1", "n2", "n3"))
    spec = spec_of(low, 3)
    line = takeover.without(place, tmp_path, where, spec, lambda place: None, ["n2", "n9"])
    assert (line is None) == (smaller is None)
    assert [(one.nodes, one.exclude) for one in submitted] == ([(smaller, ("n2", "n9"))] if smaller else [])
    assert takeover.without(place, tmp_path, where, spec, lambda place: None, ["n2"]) is None  # once
