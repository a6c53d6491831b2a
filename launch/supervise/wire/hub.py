"""The leader's end: it listens, and every node's supervisor keeps a connection to it.

What it says is pushed: a plan when it is made, how many ranks have ended when that changes, that another life
has begun. Nobody is waited for: one who is slow, silent or nobody's is dropped, and the job goes on.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from diffbase.cli import InputError
from diffbase.explain import checked
from diffbase.machine import open_files
from launch.supervise.meeting import Door, Ended, Exit, Hello, Meeting, Plan
from launch.supervise.wire.channel import BROKEN, Channel, watched
from launch.supervise.wire.codec import SIZE, Codec, StrangerError, encoded

BACKLOG = 4096
AT_ONCE = 256
"""Connections that are taken before those that there are get their turn."""
SPARE = 64
"""Connections of which nothing is known yet that are kept beside those of two for every node."""
SWEEP = 1.0
"""Seconds between two looks for those who did not prove who they are."""
GATHER = 0.1
"""Seconds in which ends of ranks are gathered before all are told."""
LAST_WORDS = 5.0
"""Seconds in which the others take what was said last."""


class Hub(Meeting):
    """The leader's meeting, over connections.

    ``ranks``: of each of ``nodes``; ``grace``: seconds that a node whose connection ended has to come back.
    """

    def __init__(self, live: Path, session: str, nodes: int, ranks: int, grace: float) -> None:
        super().__init__(live, session)
        self._nodes, self._ranks, self._grace = nodes, ranks, grace
        self._secret = secrets.token_bytes(SIZE)
        self._selector = selectors.DefaultSelector()
        self._door: socket.socket | None = None
        self._channels: dict[Channel, None] = {}  # the oldest first
        self._swept = self._told_at = 0.0
        self._of: dict[int, Channel] = {}
        self._gone: dict[int, float] = {}
        """When the connection of a node ended, by its number."""
        self._number: int | str | None = None
        self._told: Ended | None = None
        self._leaving = False

    def listen(self, address: Callable[[], str], ports: Iterable[int]) -> None:
        """As of Meeting; nothing on a single node. OSError if there is no such address or no port."""
        if self._nodes == 1 or self._door is not None:
            return
        open_files.allow(3 * self._nodes + 4 * SPARE)
        name = address()
        family, where = _place(name)
        for port in ports:
            door = socket.socket(family, socket.SOCK_STREAM)
            try:
                door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                door.bind((where, port))
                door.listen(BACKLOG)
            except OSError:
                door.close()
                continue
            door.setblocking(False)
            self._door = door
            self._selector.register(door, selectors.EVENT_READ)
            self.keep_door(Door(name, port, self._secret.hex()))
            return
        raise OSError(f"{name}: no port is free there")

    # --- what the leader says ---

    def publish(self, number: int | str, plan: Plan) -> None:
        """As of Meeting."""
        super().publish(number, plan)
        self._number, self._told, self._leaving = number, None, plan.leave
        self._tell(_plan(number, plan))

    def tell_overtaken(self) -> None:
        """As of Meeting."""
        self._leaving = True
        self._tell(encoded("overtaken"))

    def close(self) -> None:
        """As of Meeting: waits for those who do not read fast, but not long."""
        if self._door is not None:
            self._selector.unregister(self._door)
            self._door.close()
            self._door = None
        for channel in [c for c in self._channels if not c.codec.ready]:
            self._drop(channel)
        until = time.monotonic() + LAST_WORDS
        finished: set[Channel] = set()
        while self._channels and (left := until - time.monotonic()) > 0:
            for channel in [c for c in self._channels if c not in finished and not c.codec.outgoing]:
                finished.add(channel)
                with contextlib.suppress(OSError):
                    channel.finish()
            # Until the other side has closed too: what it still sends would take our last words with it.
            for key, mask in self._selector.select(left):
                self._serve(key.data, mask)
        for channel in [*self._channels]:
            self._drop(channel)
        self._selector.close()

    # --- what comes ---

    def wait(self, seconds: float) -> None:
        """As of Meeting."""
        until = time.monotonic() + seconds
        changed = False
        while not changed:
            left = until - time.monotonic()
            for key, mask in self._selector.select(max(0.0, left)):
                if key.data is None:
                    self._accept()
                else:
                    changed |= self._serve(key.data, mask)
            self._sweep()
            self._tell_ended()
            if left <= 0:
                return

    def _sweep(self) -> None:
        if (now := time.monotonic()) - self._swept > SWEEP:
            self._swept = now
            for channel in [c for c in self._channels if c.late]:
                self._drop(channel)

    def lost(self) -> frozenset[int]:
        """As of Meeting: those who did not come back in time."""
        now = time.monotonic()
        return frozenset(node for node, since in self._gone.items() if now - since > self._grace)

    def _accept(self) -> None:
        assert self._door is not None
        for _ in range(AT_ONCE):
            try:
                connection, _ = self._door.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):  # it was gone before it was taken
                    continue
                self._drop_strangers(0)  # those of whom nothing is known make room
                time.sleep(0.01)  # whoever waits there is seen again at once
                return
            codec = Codec(self._secret, leading=True)
            try:
                self._channels[Channel(watched(connection), codec, self._selector)] = None
            except OSError:
                connection.close()
        self._drop_strangers(2 * self._nodes + SPARE)

    def _drop_strangers(self, most: int) -> None:
        strangers = [channel for channel in self._channels if not channel.codec.ready]
        for channel in strangers[: max(0, len(strangers) - most)]:  # the oldest
            self._drop(channel)

    def _serve(self, channel: Channel, mask: int) -> bool:
        """Take what came; whether it was anything. The connection is dropped if it was nonsense."""
        if channel not in self._channels:  # dropped in this round
            return False
        try:
            messages = channel.serve(mask)
            for message in messages:
                self._take(channel, message)
        except BROKEN:
            self._drop(channel)
            return channel.node is not None
        return bool(messages)

    def _take(self, channel: Channel, message: dict[str, Any]) -> None:
        try:
            match message.pop("kind", None):
                case "hello" if channel.node is None:
                    node = message.pop("number", None)
                    if type(node) is not int or not 0 < node < self._nodes:
                        raise StrangerError("there is no such node")
                    self._hellos[node] = checked(Hello, message, "hello")
                    if (before := self._of.get(node)) is not None:
                        self._drop(before)
                    channel.node, self._of[node] = node, channel
                    self._gone.pop(node, None)
                    self._catch_up(channel)
                case "exits" if channel.node is not None:
                    number = message.pop("number", None)
                    if number not in self._plans:
                        raise StrangerError("no such attempt")
                    for exit in checked(list[Exit], message.pop("exits", None), "exits"):
                        if exit.rank // self._ranks != channel.node:
                            raise StrangerError(f"rank {exit.rank} is not of node {channel.node}")
                        self.report(number, exit)
                case _:
                    raise StrangerError("not a supervisor's message")
        except (InputError, TypeError) as error:
            raise StrangerError(str(error)) from None

    def _catch_up(self, channel: Channel) -> None:
        """Tell one who has just come what the others know."""
        for number, plan in [*self._plans.items()][-2:]:
            channel.send(_plan(number, plan))
        if self._told is not None and self._number is not None:
            channel.send(encoded("ended", number=self._number, **asdict(self._told)))

    def _tell_ended(self) -> None:
        """Tell all how many ranks have ended, if that has changed."""
        number = self._number
        now = time.monotonic()
        if number is None or self._leaving or now - self._told_at < GATHER:
            return
        ended = self.ended(number)
        if ended != (self._told or Ended()):
            self._told, self._told_at = ended, now
            self._tell(encoded("ended", number=number, **asdict(ended)))

    def _tell(self, message: bytes) -> None:
        for channel in [*self._of.values()]:
            try:
                channel.send(message)
            except BROKEN:
                self._drop(channel)

    def _drop(self, channel: Channel) -> None:
        if channel not in self._channels:
            return
        del self._channels[channel]
        channel.close()
        if channel.node is not None and self._of.get(channel.node) is channel:
            del self._of[channel.node]
            if not self._leaving:
                self._gone[channel.node] = time.monotonic()


def _plan(number: int | str, plan: Plan) -> bytes:
    # The rest is for the leader alone, and may be long.
    return encoded("plan", number=number, plan=asdict(replace(plan, avoid=[], why=plan.why[:1000])))


def _place(address: str) -> tuple[socket.AddressFamily, str]:
    """What to bind to: the address that the others are told, or all where that is not this machine's."""
    family, _, _, _, found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0]
    where = str(found[0])
    # A node's own name may lead to loopback there (/etc/hosts), but not for the others.
    if where != address and (where.startswith("127.") or where == "::1"):
        return family, ""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((where, 0))
        except OSError:  # an address of a router's, say
            return family, ""
    return family, where
