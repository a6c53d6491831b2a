"""The bytes between supervisors: however they are cut, what one says the other hears, and nobody else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.supervise.wire.codec import HEADER, LARGEST, SIZE, Codec, StrangerError, encoded

SECRET = bytes(range(32))
MESSAGES = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=20)), max_size=6)


def carry(one: Codec, other: Codec, cuts: st.DataObject | None = None) -> list[dict[str, Any]]:
    """Move what ``one`` has to say to ``other``, in pieces of any size."""
    found = []
    while one.outgoing:
        size = cuts.draw(st.integers(1, len(one.outgoing))) if cuts else len(one.outgoing)
        piece = bytes(one.outgoing[:size])
        del one.outgoing[:size]
        found += other.receive(piece)
    return found


def pair(secret: bytes = SECRET) -> tuple[Codec, Codec]:
    """A leader and a node that have proved who they are."""
    leader, node = Codec(SECRET, leading=True), Codec(secret, leading=False)
    for one, other in ((leader, node), (node, leader), (leader, node)):
        carry(one, other)
    return leader, node


@given(MESSAGES, MESSAGES, st.data())
def test_what_is_said_is_heard_however_it_is_cut(
    mine: list[dict[str, Any]], theirs: list[dict[str, Any]], cuts: st.DataObject
) -> None:
    leader, node = Codec(SECRET, leading=True), Codec(SECRET, leading=False)
    for one, other in ((leader, node), (node, leader), (leader, node)):
        assert carry(one, other, cuts) == []
    assert leader.ready and node.ready
    for one, other, messages in ((leader, node, mine), (node, leader, theirs)):
        for message in messages:
            one.send(json.dumps(message).encode())
        assert carry(one, other, cuts) == messages


@given(st.binary(min_size=2 * SIZE, max_size=300))
def test_a_stranger_is_refused_at_the_first_word(data: bytes) -> None:
    leader = Codec(SECRET, leading=True)
    with pytest.raises(StrangerError):
        leader.receive(data)
    node = Codec(SECRET, leading=False)
    with pytest.raises(StrangerError):
        node.receive(data)


def test_either_side_needs_the_secret() -> None:
    with pytest.raises(StrangerError):
        pair(b"x" * 32)
    # Who only repeats what the other says has not proved anything.
    leader, mirror = Codec(SECRET, leading=True), Codec(SECRET, leading=True)
    with pytest.raises(StrangerError):
        mirror.receive(bytes(leader.outgoing) * 2)


@given(st.data())
def test_a_message_cannot_be_changed(cuts: st.DataObject) -> None:
    leader, node = pair()
    node.send(encoded("hello", node=3))
    sent = bytearray(node.outgoing)
    where = cuts.draw(st.integers(0, len(sent) - 1))
    sent[where] ^= cuts.draw(st.integers(1, 255))
    try:
        assert leader.receive(bytes(sent)) == []  # a length that is larger: it waits for the rest
    except StrangerError:
        return
    assert where < 4


@pytest.mark.parametrize("how", ["again", "out of order", "back to who said it", "of another connection"])
def test_a_message_cannot_be_said_by_somebody_else(how: str) -> None:
    leader, node = pair()
    node.send(encoded("first"))
    first = bytes(node.outgoing)
    node.outgoing.clear()
    node.send(encoded("second"))
    second = bytes(node.outgoing)
    match how:
        case "again":
            leader.receive(first)
            given_to, data = leader, first
        case "out of order":
            given_to, data = leader, second
        case "back to who said it":
            given_to, data = node, first
        case _:
            given_to, data = pair()[0], first
    with pytest.raises(StrangerError):
        given_to.receive(data)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"7", b"[" * 5000, b"\xff", b'{"a": NaN}', b'{"a": 1} x', b"{" * 9]
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    leader, node = pair()
    node.send(text)
    with pytest.raises(StrangerError):
        carry(node, leader)


def test_nothing_large_is_waited_for() -> None:
    leader, _ = pair()
    with pytest.raises(StrangerError, match=str(LARGEST)):
        leader.receive((LARGEST + 1).to_bytes(4, "big") + bytes(HEADER))
