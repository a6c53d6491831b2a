"""Where a rank stands: any layout of tasks on nodes, ports, node lists."""

from __future__ import annotations

import contextlib
import socket
from itertools import chain, groupby

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from launch.ask.profile import Cluster, Network
from launch.ask.spec import JobSpec
from launch.scheduler import nodelist
from launch.supervise import environment as env
from launch.supervise.environment import PORTS, Layout


def slurm(counts: list[int], node: int) -> dict[str, str]:
    """What srun tells a task; the counts in Slurm's short form."""
    runs = [(count, len(list(group))) for count, group in groupby(counts)]
    short = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in runs)
    return {
        "SLURM_JOB_ID": "12",
        "SLURM_PROCID": str(sum(counts[:node])),
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(node),
        "SLURM_STEP_NUM_TASKS": str(sum(counts)),
        "SLURM_STEP_TASKS_PER_NODE": short,
        "SLURM_STEP_NODELIST": f"n[1-{len(counts)}]",
        "SLURM_NTASKS": "999",  # the job's, of which the step is a part
    }


@given(nodes=st.integers(1, 12), ranks=st.integers(1, 8))
def test_ranks_are_numbered_node_by_node(nodes: int, ranks: int) -> None:
    found = []
    for node in range(nodes):
        where = env.layout(slurm([1] * nodes, node), ranks)
        assert (where.world, where.local_world, where.supervisors) == (nodes * ranks, ranks, nodes)
        assert (where.node, where.node_name, where.leader) == (node, f"n{node + 1}", node == 0)
        assert [rank.local_rank for rank in where.ranks()] == list(range(ranks))
        found += [rank.rank for rank in where.ranks()]
    assert found == list(range(nodes * ranks))


@given(st.lists(st.integers(1, 3), min_size=1, max_size=5).filter(lambda counts: set(counts) != {1}))
def test_more_than_a_supervisor_on_a_node_is_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="one on each is wanted"):
        env.layout(slurm(counts, 0), 2)


def test_a_requeued_job_is_another_session() -> None:
    first = env.layout(slurm([1], 0), 2)
    again = env.layout(slurm([1], 0) | {"SLURM_RESTART_COUNT": "1"}, 2)
    assert (first.session, again.session, again.restart) == ("12.0.0", "12.1.0", 1)


def test_an_array_is_told_by_its_element() -> None:
    element = slurm([1], 0) | {"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"}
    assert env.layout(element, 1).job == "11_3"


def test_what_is_not_slurm_is_told() -> None:
    with pytest.raises(ValueError, match="SLURM_PROCID is missing"):
        env.layout({}, 1)


@given(st.integers(1, 10**8), st.integers(0, 50), st.integers(0, 50))
def test_ports_are_where_the_kernel_gives_none_away(job: int, restart: int, attempt: int) -> None:
    some = [port for _, port in zip(range(20), env.ports(str(job), restart, attempt), strict=False)]
    assert all(port in PORTS and 1024 < port < 32768 for port in some)
    assert some == [port for _, port in zip(range(20), env.ports(str(job), restart, attempt), strict=False)]
    assert len(set(some)) > 15  # a taken port is followed by others


@given(st.integers(1, 10**6), st.integers(0, 9))
def test_neighbours_and_next_lives_get_other_ports(job: int, restart: int) -> None:
    first = next(env.ports(str(job), restart, 0))
    others = [(job + 1, restart, 0), (job, restart + 1, 0), (job, restart, 1)]
    # Each may coincide by chance, once in 12,288; all three at once is no chance.
    assert any(next(env.ports(str(j), r, a)) != first for j, r, a in others)


def test_a_taken_port_is_passed_over() -> None:
    wanted = next(env.ports("4", 0, 0))
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else has it: as good
            taken.bind(("", wanted))
        assert env.free_port("4", 0, 0) != wanted


def a_layout(local_world: int = 2) -> Layout:
    return Layout("1", "1.0.0", 0, 0, local_world, 0, local_world, 0, ("n1",))


@pytest.mark.parametrize(
    ("asked", "cores", "ranks", "own", "wanted"),
    [
        ("32", 32, 4, 8, 8),  # bound to its share
        ("32", 16, 4, 4, 4),  # which may be less than what was asked for
        ("32", 64, 4, 64, 8),  # not bound
        ("", 16, 4, 16, 4),
        ("", 2, 4, 2, 1),
        ("8", 64, 4, 64, 2),
        ("2", 2, 4, 2, 1),
    ],
)
def test_threads_are_the_allocations(asked: str, cores: int, ranks: int, own: int, wanted: int) -> None:
    environ = {"SLURM_CPUS_PER_TASK": asked} if asked else {}
    assert env.threads(environ, a_layout(ranks), cores, own) == wanted


@given(st.integers(1, 8), st.integers(1, 64))
def test_ranks_share_the_cores_that_slurm_bound_their_node_to(ranks: int, count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(env.os, "sched_getaffinity", lambda pid: set(range(100, 100 + count)))
        bound = {"SLURM_CPU_BIND_TYPE": "mask_cpu:", "SLURM_CPU_BIND": "quiet,mask_cpu:0xff"}
        shares = [env.own_cores(bound, rank) for rank in a_layout(ranks).ranks()]
        if count < ranks:
            assert shares == [[]] * ranks
        else:
            assert sorted(chain.from_iterable(shares)) == list(range(100, 100 + count)) and all(shares)
        for free in ({}, {"SLURM_CPU_BIND_TYPE": "none"}, {"SLURM_CPU_BIND": "quiet,none"}):
            assert env.own_cores(free, a_layout(ranks)) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3],m", ["n1", "n2", "n3", "m"]),
        ("n[08-10,3]", ["n08", "n09", "n10", "n3"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
        ("", []),
    ],
)
def test_node_lists(text: str, names: list[str]) -> None:
    assert nodelist.expand(text) == names


@pytest.mark.parametrize("text", ["n[1-", "n]1[", "n[a-b]", "a,,b", "n[[1]]"])
def test_what_is_no_node_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        nodelist.expand(text)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=30, unique=True), st.integers(1, 4))
def test_node_lists_come_back_in_order(numbers: list[int], width: int) -> None:
    assume(all(len(str(n)) <= width or width == 1 for n in numbers))
    text = f"node[{','.join(f'{n:0{width}}' for n in numbers)}]"
    assert nodelist.expand(text) == [f"node{n:0{width}}" for n in numbers]


def test_a_ranks_environment() -> None:
    network = Network(interface="ib0", env={"NCCL_DEBUG": "WARN"})
    spec = JobSpec(
        cluster=Cluster(name="c", env={"A": "1"}, network=network), job="j", nodes=1, nodes_min=1,
        tasks_per_node=2, gpus_per_node=2, cpus_per_task=1, minutes=9,
    )  # fmt: skip
    given = {"CUDA_VISIBLE_DEVICES": "2,3", "A": "0", "MASTER_PORT": "1", "HOME": "/h"}
    told = env.rank_environment(given, a_layout(), spec, 4, ("10.0.0.1", 23456))
    wanted = {
        "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "0",
        "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "23456", "DIFFCORE_ATTEMPT": "4", "A": "1", "HOME": "/h",
        "CUDA_VISIBLE_DEVICES": "2,3", "NCCL_SOCKET_IFNAME": "ib0", "NCCL_DEBUG": "WARN",
    }  # fmt: skip
    assert wanted.items() <= told.items()
    assert "DS_ACCELERATOR" not in told  # there are GPUs
    local = env.rank_environment(given | {env.SHOWN: "GPU-abc"}, a_layout(), spec, 0, ("127.0.0.1", 1))
    assert local["CUDA_VISIBLE_DEVICES"] == "GPU-abc"


def test_an_interface_gives_its_address() -> None:
    assert env.address(a_layout(), "lo") == "127.0.0.1"
    assert env.address(a_layout(), None) == "127.0.0.1"  # one node
    with pytest.raises(OSError, match=r"network\.interface nowhere0: .* on n1"):
        env.address(a_layout(), "nowhere0")
