"""A node's end: its supervisor's connection to the leader, made again when it breaks.

Without it, the supervisor reads for itself what the leader has written down; when it could not be made again
for a while, the leader counts as lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffbase.cli import InputError
from diffbase.explain import checked
from launch.supervise.meeting import Ended, Exit, Hello, Plan, Record
from launch.supervise.wire.channel import BROKEN, Channel, watched
from launch.supervise.wire.codec import Codec, StrangerError, encoded

RETRY = 0.5
"""Seconds between two tries to connect."""
LONGEST = 2000
"""Characters of a problem that is told."""
IN_PROGRESS = (0, errno.EINPROGRESS)


class Line(Record):
    """What a node's supervisor hears from the leader.

    ``patience``: seconds within which a broken connection is made again, or the leader is lost;
    ``look_every``: seconds between two looks at the disk while there is none.
    """

    def __init__(self, live: Path, session: str, patience: float, look_every: float) -> None:
        super().__init__(live, session)
        self._patience, self._look_every = patience, look_every
        self._selector = selectors.DefaultSelector()
        self._channel: Channel | None = None
        self._try_at = self._look_at = 0.0
        self._broken: float | None = None
        """Since when there is no connection, after there was one."""
        self._hello: bytes | None = None
        self._plans: dict[int | str, Plan] = {}
        self._ended: dict[int | str, Ended] = {}
        self._number: int | str | None = None
        self._exits: list[Exit] = []  # of attempt _number
        self._leaving = False
        self.overtaken = False
        """Whether the leader has said that another life has begun."""

    @property
    def on_its_own(self) -> bool:
        """Whether this supervisor has to look at the disk for what the leader would tell it."""
        return self._channel is None or self._channel.node is None

    @property
    def gone(self) -> bool:
        """Whether the leader is lost."""
        broken = self._broken
        return broken is not None and not self._leaving and time.monotonic() - broken > self._patience

    def say_hello(self, number: int, node: str, problems: list[str]) -> None:
        """Tell the leader, once there is a connection, that this node is there and what is wrong with it."""
        hello = Hello(node, os.getpid(), [problem[:LONGEST] for problem in problems[:50]])
        self._hello = encoded("hello", number=number, **asdict(hello))

    def plan(self, number: int | str) -> Plan | None:
        """The plan of that number; None while there is none."""
        if number not in self._plans and self.on_its_own and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + self._look_every
            if plan := self.kept_plan(number):
                self._hear(number, plan)
        return self._plans.get(number)

    def report(self, number: int | str, exit: Exit) -> None:
        """Tell the leader how a rank's process of attempt ``number`` ended."""
        if number != self._number:
            self._number, self._exits = number, []
        self._exits.append(exit)
        self._say_exits([exit])

    def ended(self, number: int | str) -> Ended:
        """What the leader has said of the processes of an attempt."""
        return self._ended.get(number, Ended())

    def wait(self, seconds: float) -> None:
        """So long, or until something came from the leader."""
        until = time.monotonic() + seconds
        changed = False
        while not changed:
            self._connect()
            left = until - time.monotonic()
            pause = min(left, self._try_at - time.monotonic()) if self._wanting else left
            for key, mask in self._selector.select(max(0.0, pause)):
                changed |= self._serve(key.data, mask)
            if self._channel is not None and self._channel.late:
                self._drop()
            if left <= 0:
                return

    def close(self) -> None:
        """End the connection."""
        self._leaving = True
        self._drop()
        self._selector.close()

    # --- the connection ---

    @property
    def _wanting(self) -> bool:
        """Whether there should be a connection, and is none."""
        return self._channel is None and not self._leaving and self._hello is not None

    def _connect(self) -> None:
        now = time.monotonic()
        if not self._wanting or now < self._try_at:
            return
        door = self.door()
        self._try_at = now + (RETRY if door else self._look_every)
        if door is None:
            return
        with contextlib.suppress(OSError):
            family, kind, _, _, where = socket.getaddrinfo(door.address, door.port, type=socket.SOCK_STREAM)[
                0
            ]
            sock = watched(socket.socket(family, kind))
            if sock.connect_ex(where) not in IN_PROGRESS:
                sock.close()
                return
            self._channel = Channel(sock, Codec(bytes.fromhex(door.secret), leading=False), self._selector)

    def _serve(self, channel: Channel, mask: int) -> bool:
        try:
            messages = channel.serve(mask)
            if channel.codec.ready and channel.node is None:
                self._introduce(channel)
            for message in messages:
                self._take(message)
        except BROKEN:
            self._drop()
            return False
        return bool(messages)

    def _introduce(self, channel: Channel) -> None:
        """First of all: who this is, and what a leader that lost the connection may not have heard."""
        assert self._hello is not None
        channel.send(self._hello)
        channel.node, self._broken = 0, None
        self._say_exits(self._exits)

    def _say_exits(self, exits: list[Exit]) -> None:
        if exits and self._channel is not None and self._channel.node is not None:
            message = encoded("exits", number=self._number, exits=[asdict(exit) for exit in exits])
            try:
                self._channel.send(message)
            except BROKEN:
                self._drop()

    def _take(self, message: dict[str, Any]) -> None:
        try:
            number = message.pop("number", None)
            match message.pop("kind", None):
                case "plan":
                    self._hear(number, checked(Plan, message.pop("plan", None), "plan"))
                case "ended":
                    self._ended[number] = checked(Ended, message, "ended")
                case "overtaken":
                    self.overtaken = self._leaving = True
                case _:
                    raise StrangerError("not a leader's message")
        except (InputError, TypeError) as error:
            raise StrangerError(str(error)) from None

    def _hear(self, number: int | str, plan: Plan) -> None:
        self._plans[number] = plan
        self._leaving |= plan.leave

    def _drop(self) -> None:
        if self._channel is None:
            return
        if self._channel.node is not None:
            self._broken = time.monotonic()
        self._channel.close()
        self._channel = None
