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
