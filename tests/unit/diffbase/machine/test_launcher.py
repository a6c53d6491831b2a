"""A rank's place is what a launcher says, or one line that says what it should say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.machine import launcher

TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "29500"}


def test_without_a_launcher_there_is_one_rank() -> None:
    assert launcher.place({}) == (0, 1, 0)
    assert launcher.place(TWO) == (1, 2, 0)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"RANK": "abc"}, "RANK is 'abc': allowed are whole numbers from 0 to 1"),
        ({"RANK": ""}, "RANK is ''"),
        ({"RANK": "9" * 5000}, "RANK is '999"),
        ({"RANK": "2"}, "from 0 to 1"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK is '1': allowed are whole numbers from 0 to 0"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"MASTER_PORT": "99999999"}, "MASTER_PORT is '99999999': allowed are whole numbers from 1 to 65535"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is empty"),
    ],
)
def test_nonsense_is_one_line(changed: dict[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        launcher.place(TWO | changed)


def test_ranks_without_a_port_do_not_meet() -> None:
    with pytest.raises(InputError, match="MASTER_PORT is missing"):
        launcher.place({"RANK": "0", "WORLD_SIZE": "2"})


def test_each_of_several_ranks_is_told_its_own() -> None:
    with pytest.raises(InputError, match="RANK is missing: allowed are whole numbers from 0 to 1"):
        launcher.place({"WORLD_SIZE": "2", "MASTER_PORT": "29500"})
    assert launcher.place({"WORLD_SIZE": "1"}) == (0, 1, 0)


def test_ranks_of_a_node_are_what_the_launcher_says() -> None:
    assert launcher.ranks_here({}) is None and launcher.ranks_here({"LOCAL_SIZE": ""}) is None
    assert launcher.ranks_here({"LOCAL_WORLD_SIZE": "", "LOCAL_SIZE": "4"}) == 4
    with pytest.raises(InputError, match="LOCAL_WORLD_SIZE is '-1'"):
        launcher.ranks_here({"LOCAL_WORLD_SIZE": "-1"})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [("DS_ACCELERATOR", "cpu", "tpu"), ("GLOO_SOCKET_IFNAME", "lo,lo", "lo,nonsense")],
)
def test_devices_are_those_that_there_are(name: str, good: str, bad: str) -> None:
    launcher.check_devices({})
    launcher.check_devices({name: good})
    with pytest.raises(InputError, match=f"{name} (is|has) '{bad.rpartition(',')[2]}'"):
        launcher.check_devices({name: bad})


@given(st.dictionaries(st.sampled_from([*TWO, "MASTER_ADDR"]), st.text(max_size=12)))
def test_any_environment_is_a_place_or_told(environ: dict[str, str]) -> None:
    try:
        found = launcher.place(environ)
    except InputError as error:
        assert "allowed" in str(error)
    else:
        assert 0 <= found.rank < found.size and 0 <= found.local < found.size
        assert launcher.own_rank(environ) == found.rank
    assert launcher.own_rank(environ) >= 0


def step(rank: int = 1, tasks: int = 3, per_node: str = "2,1", **more: str) -> dict[str, str]:
    """What srun says to a task of a step on two nodes."""
    return {
        "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "2", "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_NTASKS": str(tasks),
        "SLURM_LOCALID": str(rank % 2), "SLURM_NODEID": str(rank // 2),
        "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": per_node,
        "SLURM_STEP_NODELIST": "gpu[03-04,7]-ib,login", **more,
    }  # fmt: skip


def test_a_step_of_sruns_is_one_run() -> None:
    ports = set()
    for rank in range(3):
        environ = step(rank)
        assert launcher.place(environ) == (rank, 3, rank % 2) and launcher.own_rank(environ) == rank
        assert launcher.ranks_here(environ) == (2, 2, 1)[rank]
        told = launcher.told(environ)
        assert told["MASTER_ADDR"] == "gpu03-ib"
        ports.add(told["MASTER_PORT"])
    assert len(ports) == 1
    for other in ({"SLURM_STEP_ID": "3"}, {"SLURM_JOB_ID": "18"}, {"SLURM_RESTART_COUNT": "1"}):
        assert launcher.told(step(**other))["MASTER_PORT"] not in ports


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        (step(1, 2, "2", SLURM_STEP_NUM_NODES="1"), ("127.0.0.1", None)),
        (step(1, SLURM_STEP_NODELIST="a,b[1-2]"), ("a", None)),
        (step(1, MASTER_ADDR="10.0.0.1", MASTER_PORT="5"), ("10.0.0.1", "5")),
        (step(1, 3, "3", PMI_SIZE="3", PMI_RANK="1"), ("gpu03-ib", None)),
        (step(1, 3, "3", PMI_SIZE="8", PMI_RANK="5", MASTER_ADDR="x"), ("x", "missing")),
    ],
)
def test_where_a_steps_ranks_meet(environ: dict[str, str], wanted: tuple[str, str | None]) -> None:
    told = launcher.told(environ)
    assert told["MASTER_ADDR"] == wanted[0]
    assert told.get("MASTER_PORT", "missing") == (wanted[1] or told["MASTER_PORT"])


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4"},  # salloc's shell
        {
            "SLURM_JOB_ID": "17",
            "SLURM_NTASKS": "4",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
        },  # a batch script
        step(0, 1, "1"),  # srun --pty -n1 bash
        step(1) | {"WORLD_SIZE": "1"},
        {"PMIX_RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_who_is_no_task_among_several_is_alone(environ: dict[str, str]) -> None:
    assert launcher.place(environ) == (0, 1, 0)


OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_mpiruns_ranks_need_a_port_and_on_several_nodes_an_address() -> None:
    with pytest.raises(InputError, match="MASTER_PORT is missing"):
        launcher.place(OPEN_MPI)
    daemons = step(0, 2)  # mpirun starts its daemons by srun, whose variables its ranks inherit
    assert launcher.place(daemons | OPEN_MPI | {"MASTER_PORT": "5000"}) == (1, 2, 1)
    assert launcher.told(OPEN_MPI)["MASTER_ADDR"] == "127.0.0.1"
    away = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "MASTER_PORT": "5000"}
    with pytest.raises(InputError, match="MASTER_ADDR is empty or missing"):
        launcher.place(away | {"OMPI_COMM_WORLD_LOCAL_RANK": "0"})
    with pytest.raises(InputError, match="nothing how many"):
        launcher.place({"PMIX_RANK": "1"})


SLURMS = [
    *("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID", "SLURM_LOCALID"),
    *("SLURM_STEP_NODELIST", "PMI_SIZE", "PMI_RANK"),
]


@given(st.dictionaries(st.sampled_from(SLURMS), st.text("0123(x),[]-a", max_size=8)))
def test_any_step_is_a_place_or_told(environ: dict[str, str]) -> None:
    try:
        found = launcher.place(environ)
    except InputError as error:
        assert "allowed" in str(error)
    else:
        assert 0 <= found.rank < found.size
    assert launcher.own_rank(environ) >= 0
