"""Optimizers by name, and what one keeps and works in on tensors of given sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.optim import optimizer as optimizer_module
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils

from diffbase.cli import InputError
from diffcore.memory.modules.building import told
from diffcore.memory.planning.recording import Kind, Recorder, Trace
from diffcore.memory.planning.states import Work

BLOCK = 256
"""Elements that share a scale in bitsandbytes' 8-bit states (Dettmers et al. 2022, section 2.2)."""
LEAST = 4096
"""Elements below which bitsandbytes keeps a tensor's states in fp32 (``min_8bit_size``)."""
CODES = 256 * 4
"""Bytes of a table of quantization codes; one for signed and one for unsigned values, shared by all."""


class Adam8bit(torch.optim.Optimizer):
    """bitsandbytes' ``Adam8bit`` and ``AdamW8bit`` as far as memory goes, by its documented formula.

    Of each tensor of at least 4,096 elements: two bytes an element, and two fp32 scales for each block of
    256. Its kernels update in place and allocate nothing.
    """

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.codes: list[Tensor] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the states, where they are not there yet."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None or self.state[p]:
                    continue
                small = p.numel() < LEAST
                if small:
                    self.state[p] = {"state1": torch.zeros_like(p, dtype=torch.float32)}
                    self.state[p]["state2"] = torch.zeros_like(p, dtype=torch.float32)
                    continue
                if not self.codes:
                    self.codes = [torch.empty(CODES // 4), torch.empty(CODES // 4)]
                blocks = -(-p.numel() // BLOCK)
                self.state[p] = {
                    "state1": torch.zeros_like(p, dtype=torch.uint8),
                    "state2": torch.zeros_like(p, dtype=torch.uint8),
                    "absmax1": torch.zeros(blocks),
                    "absmax2": torch.zeros(blocks),
                    "qmap1": self.codes[0],
                    "qmap2": self.codes[1],
                }


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "adamw-fused": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, lr=1e-3),
    "sgd-momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "adafactor": torch.optim.Adafactor,
    "adam8bit": Adam8bit,
}
"""By name, with torch's own defaults: on a GPU torch steps on all tensors together (``foreach``)."""
if hasattr(torch.optim, "Muon"):

    def _muon(params: Any) -> _Both:
        given = list(params)
        return _Both(
            [p for p in given if p.ndim == 2 and min(p.shape) > 1],
            [p for p in given if not (p.ndim == 2 and min(p.shape) > 1)],
        )

    class _Both:
        """torch's Muon takes matrices only: AdamW steps on the rest."""

        def __init__(self, matrices: list[Any], others: list[Any]) -> None:
            both = ((torch.optim.Muon, matrices), (torch.optim.AdamW, others))
            self.each: list[Any] = [kind(given) for kind, given in both if given]

        @property
        def state(self) -> dict[Any, Any]:
            """Of both."""
            return {p: kept for one in self.each for p, kept in one.state.items()}

        def step(self) -> None:
            """Both step."""
            for one in self.each:
                one.step()

        def zero_grad(self, set_to_none: bool = True) -> None:
            """Of both."""
            for one in self.each:
                one.zero_grad(set_to_none)

    OPTIMIZERS["muon"] = _muon


def named(name: str) -> Callable[..., Any]:
    """The optimizer of that name. InputError with all names for another."""
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer {name!r:.60}: allowed are {', '.join(OPTIMIZERS)}, or a class")
    return OPTIMIZERS[name]


class AnyNumber(TorchFunctionMode):
    """An optimizer that looks at a value (Adafactor at a weight's norm) finds 1: it scales by it, no more."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As ``func``, or 1.0."""
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if func not in (Tensor.item, Tensor.__float__):
                raise
            return 1.0


@contextmanager
def as_on_cuda(cuda: bool) -> Iterator[None]:
    """Optimizers choose ``foreach`` as they do for tensors on a GPU."""
    own = _foreach_utils._get_foreach_kernels_supported_devices
    places = (_foreach_utils, optimizer_module) if cuda else ()
    for place in places:
        place._get_foreach_kernels_supported_devices = lambda: ["cpu", *own()]  # type: ignore[attr-defined]
    kinds: list[Any] = optimizer_module._foreach_supported_types
    count = len(kinds)
    kinds.extend([FakeTensor] * cuda)
    try:
        yield
    finally:
        del kinds[count:]
        for place in places:
            place._get_foreach_kernels_supported_devices = own  # type: ignore[attr-defined]


def states_of(optimizer: Any) -> list[Tensor]:
    """Every tensor that it keeps."""
    return [x for kept in optimizer.state.values() for x in kept.values() if isinstance(x, Tensor)]


def work_of(make: Callable[[Any], Any], shapes: Sequence[tuple[int, ...]], cuda: bool, name: str) -> Work:
    """Of fp32 tensors of ``shapes`` with gradients, in a step that finds its states there."""
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_cuda(cuda), told(name):
        parameters = [torch.nn.Parameter(torch.empty(shape)) for shape in shapes]
        optimizer = make(parameters)
        for p in parameters:
            p.grad = torch.empty_like(p)
        with AnyNumber():
            optimizer.step()
        kept = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in states_of(optimizer)}
        trace = Trace(1, torch.float32, [], 0, 0)
        recorder = Recorder(trace, cuda)
        recorder.ignore([*parameters, *(p.grad for p in parameters if p.grad is not None)])
        recorder.ignore(states_of(optimizer))
        with recorder, AnyNumber():
            optimizer.step()
        recorder.done = True
    events = [(e.what, e.size if e.kind == Kind.ALLOCATE else 0) for e in trace.events if e.what >= 0]
    freed = {what for what, size in events if not size}
    events += [(what, 0) for what, size in events if size and what not in freed]
    return Work(tuple(kept.values()), tuple(events))
