"""Watched collectives: every call and every wait is inside, results and handles are as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffcore.engine import communication as collectives


class Work:
    def __init__(self, said: list[str]) -> None:
        self.said = said

    def wait(self) -> bool:
        self.said.append("waited")
        return True

    def is_completed(self) -> bool:
        return False


class Backend:
    def __init__(self) -> None:
        self.said: list[str] = []

    def _call(self, tensor: int, async_op: bool = False) -> Work | int:
        self.said.append("called")
        return Work(self.said) if async_op else tensor + 1


for name in collectives.COLLECTIVES:
    setattr(Backend, name, Backend._call)


def test_calls_and_waits_are_inside_and_watching_anew_replaces() -> None:
    backend, first = Backend(), []

    @contextmanager
    def inside() -> Iterator[None]:
        backend.said.append("in")
        yield
        backend.said.append("out")

    @contextmanager
    def before() -> Iterator[None]:
        first.append("in")
        yield

    collectives.watch(backend, before)
    collectives.watch(backend, inside)
    assert backend.all_reduce(1) == 2
    work = backend.all_gather_into_tensor(1, async_op=True)
    assert not work.is_completed() and work.wait()
    assert backend.said == ["in", "called", "out", "in", "called", "out", "in", "waited", "out"]
    assert not first


def test_deepspeeds_backend_has_them_all() -> None:
    from deepspeed.comm.torch import TorchBackend

    assert all(hasattr(TorchBackend, name) for name in collectives.COLLECTIVES)
