"""Batches on their way to a GPU: one ahead, and nothing is overwritten before the work on it is done.

Here torch.cuda is played by streams whose work is done only when something waits for it, as late as can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor

from diffcore.engine import staging

CPU = torch.device("cpu")


class Stream:
    def __init__(self, *_: object) -> None:
        self.waiting: list[Callable[[], object]] = []

    def finish(self, until: int) -> None:
        while self.done < until:
            self.done += 1
            self.waiting[self.done - 1]()

    done = 0

    def wait_event(self, event: Event) -> None:
        stream, until = event.stream, event.until
        self.waiting.append(lambda: stream.finish(until))

    def wait_stream(self, stream: Stream) -> None:
        until = len(stream.waiting)
        self.waiting.append(lambda: stream.finish(until))


class Event:
    stream: Stream
    until: int

    def record(self, stream: Stream) -> None:
        self.stream, self.until = stream, len(stream.waiting)


class Lazy:
    """torch.cuda: ``current`` is the stream of the work."""

    Stream, Event = Stream, Event

    def __init__(self) -> None:
        self.work = self.current = Stream()

    def current_stream(self, _: object) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.current = stream
        yield
        self.current = self.work


@pytest.mark.parametrize("eager", ["copies", "neither"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_each_batch_is_worked_on_as_it_was_sent(count: int, eager: str) -> None:
    cuda, sent, seen = Lazy(), list[int](), list[list[int]]()
    plain = Tensor.copy_

    def copy(to: Tensor, x: Tensor, non_blocking: bool) -> None:
        assert non_blocking and cuda.current is not cuda.work
        cuda.current.waiting.append(lambda: plain(to, x))
        if eager == "copies":  # as early as can be
            cuda.current.finish(len(cuda.current.waiting))

    def batches() -> Iterator[staging.Tensors]:
        for k in range(count):
            sent.append(k)
            yield torch.tensor([k, k]), torch.tensor([[float(k)]])

    with mock.patch.object(Tensor, "copy_", copy):
        for k, (a, b) in enumerate(staging._staged(batches(), CPU, cuda)):
            assert len(sent) == min(k + 2, count)  # the next one is on its way
            cuda.work.waiting.append(lambda a=a, b=b: seen.append([*a.tolist(), int(b)]))
    cuda.work.finish(len(cuda.work.waiting))
    assert seen == [[k, k, k] for k in range(count)]


def test_what_is_closed_waits_for_its_copies() -> None:
    """Else the memory of the buffers would be someone else's while they are written."""
    cuda = Lazy()
    running = staging._staged(((torch.ones(1),) for _ in range(9)), CPU, cuda)
    next(running)
    before = len(cuda.work.waiting)
    running.close()
    assert len(cuda.work.waiting) == before + 1


def test_nothing_is_pinned_for_a_cpu() -> None:
    tensors = (torch.ones(2), torch.zeros(3))
    assert staging.pinned(tensors, CPU) is tensors
