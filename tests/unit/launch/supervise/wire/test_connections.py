"""A leader and its nodes over real sockets: what is said is heard, and strangers stop nobody."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffbase.machine.ports import any_free
from launch.supervise.meeting import Door, Ended, Exit, Meeting, Plan
from launch.supervise.wire import channel, hub, line
from launch.supervise.wire.channel import Channel
from launch.supervise.wire.codec import Codec, encoded
from launch.supervise.wire.hub import Hub
from launch.supervise.wire.line import Line

RANKS, PATIENCE, GRACE = 2, 0.4, 0.8
PLAN = Plan(0, "n1", 29500)
Job = Callable[..., tuple[Hub, list[Line]]]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """A leader and ``nodes`` - 1 lines; ``met``: all of them connected."""
    monkeypatch.setattr(hub, "LAST_WORDS", 0.3)  # nobody answers meanwhile: all is in one thread
    opened: list[Hub | Line] = []

    def start(nodes: int = 3, met: bool = True) -> tuple[Hub, list[Line]]:
        live = tmp_path / "run" / "job" / "001" / "live"
        leader = Hub(live, "7.0", nodes, RANKS, GRACE)
        leader.open()
        leader.say_hello(0, "n1", [])
        lines = [Line(live, "7.0", PATIENCE, 0.05) for _ in range(nodes - 1)]
        opened.extend([leader, *lines])
        leader.listen(lambda: "127.0.0.1", [any_free()])
        for number, each in enumerate(lines, start=1):
            each.say_hello(number, f"n{number + 1}", [])
        if met:
            until(lambda: len(leader.hellos()) == nodes, leader, *lines)
        return leader, lines

    yield start
    for one in reversed(opened):
        one.close()


def until(condition: Callable[[], object], *everyone: Hub | Line, seconds: float = 20) -> None:
    """Give everyone its turns until it is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        for one in everyone:
            one.wait(0.01)


def ended(rank: int, code: int = 0) -> Exit:
    return Exit(rank, code, 5.0, "n")


def break_off(one: Line) -> None:
    """As a network does that forgets a connection."""
    assert one._channel is not None
    one._channel._socket.shutdown(socket.SHUT_RDWR)


def knock(leader: Meeting) -> socket.socket:
    """A connection as a stranger makes it."""
    door = leader.door()
    assert door is not None
    return socket.create_connection((door.address, door.port), timeout=10)


def closed(sock: socket.socket) -> bool:
    """Whether the other side has closed, after all that it said has been read."""
    sock.setblocking(False)
    try:
        while sock.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def test_a_job_from_its_begin_to_its_end(job: Job) -> None:
    leader, lines = job(4)
    assert {number: hello.node for number, hello in leader.hellos().items()} == {
        0: "n1", 1: "n2", 2: "n3", 3: "n4"
    }  # fmt: skip
    leader.publish(0, PLAN)
    until(lambda: all(one.plan(0) for one in lines), leader, *lines)
    assert not any(one.on_its_own for one in lines)
    lines[1].report(0, ended(4))
    until(lambda: all(one.ended(0) == Ended(1) for one in lines), leader, *lines)
    leader.report(0, ended(0, 75))
    until(lambda: all(one.ended(0) == Ended(2, True, True) for one in lines), leader, *lines)
    assert leader.exits(0, {}) == {4: ended(4), 0: ended(0, 75)}
    leave = Plan(0, leave=True, code=75, why="x" * 5000, avoid=["n3"])
    leader.publish(1, leave)
    until(lambda: all(one.plan(1) for one in lines), leader, *lines)
    heard = lines[0].plan(1)
    assert heard is not None and (heard.leave, heard.code) == (True, 75)
    assert leader.kept_plan(1) == leave  # whole


def test_what_is_wrong_with_a_node_is_heard(job: Job) -> None:
    leader, lines = job(2, met=False)
    lines[0].say_hello(1, "n2", ["GPU 3", "y" * 100_000])
    until(lambda: 1 in leader.hellos(), leader, *lines)
    assert leader.hellos()[1].problems == ["GPU 3", "y" * line.LONGEST]


def test_who_comes_late_hears_what_was_said(job: Job) -> None:
    leader, [early, late] = job(3, met=False)
    until(lambda: 1 in leader.hellos(), leader, early)
    leader.publish("probe", PLAN)
    early.report("probe", ended(2, -9))
    until(lambda: leader.exits("probe", {}), leader, early)
    until(lambda: late.plan("probe") and late.ended("probe") == Ended(1, failed=True), leader, late)


def test_a_broken_connection_is_made_again_and_nothing_is_lost(job: Job) -> None:
    leader, [one, other] = job(3)
    leader.publish(0, PLAN)
    until(lambda: one.plan(0) and other.plan(0), leader, one, other)
    break_off(one)
    one.report(0, ended(2))  # while there is none
    one.report(0, ended(3))
    leader.report(0, ended(1))
    until(lambda: len(leader.exits(0, {})) == 3, leader, one, other)
    until(lambda: one.ended(0) == Ended(3), leader, one, other)
    assert not one.gone and not leader.lost() and not one.on_its_own


def test_a_node_that_does_not_come_back_is_lost_and_all_are_told(job: Job) -> None:
    leader, [one, other] = job(3)
    leader.publish(0, PLAN)
    until(lambda: one.plan(0) and other.plan(0), leader, one, other)
    began = time.monotonic()
    one.close()
    until(lambda: other.ended(0).failed, leader, other)
    assert time.monotonic() - began > GRACE and leader.lost() == {1}


def test_a_leader_that_does_not_come_back_is_lost(job: Job) -> None:
    leader, [one] = job(2)
    leader.publish(0, PLAN)
    until(lambda: one.plan(0), leader, one)
    began = time.monotonic()
    leader.close()
    until(lambda: one.gone, one)
    assert time.monotonic() - began > PATIENCE and one.on_its_own
    # What it has written down holds.
    leader.keep_plan(1, Plan(1, leave=True, code=75))
    until(lambda: one.plan(1), one)
    assert not one.gone


def test_without_a_leader_that_listens_what_is_written_down_is_read(job: Job, tmp_path: Path) -> None:
    leader, [one] = job(2, met=False)
    (leader.folder / "leader.json").unlink()
    leader.publish(0, Plan(0, leave=True, code=2))
    until(lambda: one.plan(0), one)


def test_the_last_word_arrives_although_the_leader_leaves_at_once(job: Job) -> None:
    leader, lines = job(4)
    leader.publish(0, PLAN)
    for number, each in enumerate(lines, start=1):
        each._plans[0] = PLAN  # they were told
        each.report(0, ended(number * RANKS))  # and say something at the same moment
    leader.publish(1, Plan(0, leave=True, code=85))
    leader.close()
    until(lambda: all(one._plans.get(1) for one in lines), *lines)
    assert not any(one.gone for one in lines)


def test_that_another_life_has_begun_is_told(job: Job) -> None:
    leader, lines = job(3)
    assert not any(one.overtaken for one in lines)
    leader.tell_overtaken()
    until(lambda: all(one.overtaken for one in lines), *lines)


def test_the_newer_connection_of_a_node_counts(job: Job, tmp_path: Path) -> None:
    leader, [one] = job(2)
    again = Line(one.folder.parent, "7.0", PATIENCE, 0.05)
    again.say_hello(1, "n2", ["again"])
    until(lambda: leader.hellos()[1].problems, leader, again)
    leader.publish(0, PLAN)
    until(lambda: again._plans.get(0), leader, again)
    assert len(leader._of) == 1 and not leader.lost()
    again.close()


@pytest.mark.parametrize("end", ["leader", "node"])
@pytest.mark.parametrize(
    "message",
    [
        encoded("exits", number=0, exits=[{"rank": 0, "code": 0, "time": 1.0, "node": "n", "ours": False}]),
        encoded("exits", number=9, exits=[]),
        encoded("exits", number=[], exits=[]),
        encoded("exits", number=0, exits=[{"rank": "2", "code": 0, "time": 1.0, "node": "n"}]),
        encoded("exits", number=0, exits=None),
        encoded("hello", number=1, node="n", pid=1, problems=[]),
        encoded("plan", number=0, plan={"attempt": -1}),
        encoded("plan", number={}, plan={"attempt": 1}),
        encoded("ended", number=0, count="1"),
        encoded("what"),
        b"{}",
    ],
)
def test_who_knows_the_secret_and_talks_nonsense_is_dropped(job: Job, message: bytes, end: str) -> None:
    leader, [one, other] = job(3)
    leader.publish(0, PLAN)
    until(lambda: one.plan(0) and other.plan(0), leader, one, other)
    assert one._channel is not None
    before = leader._of[1]
    (one._channel if end == "leader" else before).send(message)
    until(lambda: leader._of.get(1) not in (None, before), leader, one, other)  # it is there again
    leader.publish(1, PLAN)
    until(lambda: one.plan(1) and other.plan(1), leader, one, other)
    assert not leader.exits(0, {}) and not leader.lost()


LEAVES = b""
STRANGERS: dict[str, list[bytes]] = {
    "silent": [],
    "garbage": [b"GET / HTTP/1.0\r\n\r\n" * 10],
    "without end": [b"\0" * 60_000] * 20,
    "half a handshake": [b"x" * 40],
    "another secret": [b"x" * 64],
    "gone at once": [LEAVES],
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_on_the_port_stops_nobody(job: Job, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "HANDSHAKE", 0.5)
    leader, lines = job(3, met=False)
    strangers = [knock(leader) for _ in range(20)]
    for stranger in strangers:
        stranger.setblocking(False)
        for data in STRANGERS[kind]:
            try:
                stranger.shutdown(socket.SHUT_RDWR) if data is LEAVES else stranger.send(data)
            except OSError:
                break
    until(lambda: len(leader.hellos()) == 3, leader, *lines)
    leader.publish(0, PLAN)
    until(lambda: all(one.plan(0) for one in lines), leader, *lines)
    until(lambda: all(closed(stranger) for stranger in strangers), leader, *lines)
    assert len(leader._channels) == 2 and not leader.lost() and not any(one.gone for one in lines)
    for stranger in strangers:
        stranger.close()


def test_crowds_of_strangers_make_room_for_each_other(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SPARE", 10)
    leader, lines = job(3)
    strangers = [knock(leader) for _ in range(40)]
    leader.publish(0, PLAN)
    until(lambda: all(one.plan(0) for one in lines), leader, *lines)
    until(lambda: len(leader._channels) <= 2 * 3 + 10 + 2, leader, *lines)
    assert sum(closed(stranger) for stranger in strangers) >= 40 - 16 and len(leader._of) == 2
    for stranger in strangers:
        stranger.close()


def test_without_a_descriptor_left_the_strangers_go(job: Job) -> None:
    leader, lines = job(3, met=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    strangers = [knock(leader) for _ in range(30)]
    with socket.socket() as probe:
        most = probe.fileno() + 10
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        leader.wait(0.1)
        for _ in range(20):
            leader.wait(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: len(leader.hellos()) == 3, leader, *lines)
    for stranger in strangers:
        stranger.close()


def test_who_does_not_read_is_dropped_and_delays_nobody(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "PENDING", 100_000)
    leader, [slow, other] = job(3)
    before = leader._of[1]
    for number in range(20_000):
        leader.publish(number, Plan(0, "n1", 29500)) if number == 0 else leader._tell(
            encoded("plan", number=0, plan={"attempt": 0, "address": "n1" * 100, "port": 29500})
        )
        if number % 100 == 0:
            other.wait(0.001)
        if leader._of.get(1) is not before:
            break
    assert leader._of.get(1) is not before and 2 in leader._of
    leader.publish(1, PLAN)
    until(lambda: other.plan(1), leader, other)
    until(lambda: slow.plan(1), leader, slow, other)  # it comes again


def test_a_node_does_not_take_a_strangers_word(job: Job) -> None:
    leader, [one] = job(2, met=False)
    with socket.create_server(("127.0.0.1", 0)) as false:
        false.settimeout(10)
        leader.keep_door(Door("127.0.0.1", false.getsockname()[1], leader._secret.hex()))
        one.wait(0.1)
        connection, _ = false.accept()
        with connection:
            connection.sendall(b"n" * 32)  # as if it were the leader
            connection.sendall(b"p" * 32)
            until(lambda: one._channel is None or closed(connection), one)
    assert one.on_its_own and one.plan(0) is None and not one.gone


def test_an_address_that_is_not_there_is_said(job: Job, tmp_path: Path) -> None:
    leader = Hub(tmp_path / "a" / "b" / "live", "7.0", 2, 1, GRACE)
    leader.open()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="no port is free"):
            leader.listen(lambda: "127.0.0.1", [taken.getsockname()[1]])
        leader.listen(lambda: "127.0.0.1", [taken.getsockname()[1], any_free()])
    door = leader.door()
    assert door is not None and door.address == "127.0.0.1"
    leader.close()


def test_one_node_listens_nowhere(tmp_path: Path) -> None:
    leader = Hub(tmp_path / "a" / "b" / "live", "7.0", 1, 8, GRACE)
    leader.open()
    leader.listen(lambda: "127.0.0.1", [any_free()])
    assert leader.door() is None
    leader.publish(0, PLAN)
    leader.report(0, ended(3, 75))
    leader.wait(0.01)
    assert leader.ended(0) == Ended(1, failed=True)
    leader.close()


def test_a_channel_is_of_no_use_when_the_other_side_is_gone() -> None:
    import selectors

    with selectors.DefaultSelector() as selector:
        one, other = socket.socketpair(socket.AF_UNIX)
        one.setblocking(False)
        ours = Channel(one, Codec(b"s" * 32, leading=True), selector)
        other.close()
        with pytest.raises(OSError, match=r"closed|Broken pipe|reset"):
            ours.serve(channel.READ)
        ours.close()
