"""What one forward and backward allocates, as it happens under fake tensors: a trace of events.

A dispatch mode notes when each storage comes and goes, hooks note which layer made it, when each gradient is
complete, and where modules begin and end. Fake tensors have a shape, a dtype and a lifetime but no memory.
Bytes are the tensors' own; what a device's allocator makes of them is allocator.py's business.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves

NORMS = {torch.ops.aten.native_layer_norm.default: 2, torch.ops.aten.native_group_norm.default: 1}
"""Norms that keep a mean and a deviation, and which of their arguments is the weight."""


class Kind(IntEnum):
    """What an event of a trace is."""

    ALLOCATE = 0
    """``what`` is the storage, ``size`` its bytes."""
    FREE = 1
    """``what`` is the storage."""
    GRADIENT = 2
    """``what`` is the parameter whose gradient is complete, ``size`` the storage that holds it."""
    ENTER = 3
    """A module begins: ``what`` is the module, ``size`` 0 in forward and 1 in backward."""
    LEAVE = 4
    """A module ends, as ENTER."""
    TURN = 5
    """The loss is there: forward ends, backward begins."""
    MARK = 6
    """A phase of a loop ends: ``what`` is its number in ``loops.PHASES``."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a trace; ``Kind`` says what ``what`` and ``size`` are."""

    kind: Kind
    what: int
    size: int = 0


@dataclass(frozen=True)
class Parameter:
    """A parameter of the traced network."""

    name: str
    shape: tuple[int, ...]
    matrix: tuple[int, int] | None = None
    """Rows and columns, where it would be one to the optimizer Muon."""
    frozen: bool = False
    """Whether it has no gradient; such parameters come after all others."""

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return int(torch.Size(self.shape).numel())


@dataclass
class Trace:
    """One micro batch as a list of events. ``layers[i]`` is the module that made storage i."""

    micro: int
    dtype: torch.dtype
    parameters: list[Parameter]
    buffers: int
    """Bytes of the network's buffers and of the noise schedule."""
    inputs: int
    """Bytes of the micro batch itself: images, labels, noise, timesteps; and of the next ones' buffers."""
    events: list[Event] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    recomputed: set[int] = field(default_factory=set)
    """Storages that checkpointing makes a second time, in backward."""
    copies: dict[int, int] = field(default_factory=dict)
    """Storage -> parameter whose gradient autograd copies there, because it came laid out otherwise. One that
    is added to an earlier gradient is not copied."""
    modules: list[tuple[str, list[int]]] = field(default_factory=list)
    """Name and own parameters of each module, by number."""
    cuda: bool = False
    """Whether it is as on a GPU."""

    @property
    def itemsize(self) -> int:
        """Bytes of one element of a weight."""
        return self.dtype.itemsize


def kept(trace: Trace) -> Iterator[dict[int, int]]:
    """Storages that are there, and their bytes, each time that a backward begins: what autograd saved."""
    alive: dict[int, int] = {}
    for event in trace.events:
        if event.kind == Kind.ALLOCATE:
            alive[event.what] = event.size
        elif event.kind == Kind.FREE:
            alive.pop(event.what, None)
        elif event.kind == Kind.TURN:
            yield dict(alive)


class Recorder(TorchDispatchMode):
    """Notes the birth and death of every storage that an operation returns."""

    def __init__(self, trace: Trace, cuda: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.cuda = trace, cuda
        self.known: dict[int, int] = {}
        self.stack: list[str] = []
        self.strided: set[int] = set()
        """Storages that were asked for with given strides, as autograd asks for copies of gradients."""
        self.recomputing = False
        self.done = False
        self.category: str | None = None
        """What storages are that are made now, where that is known."""
        self.categories: dict[int, str] = {}
        """Of the storages of which it is known."""
        self.paused = False
        """Whether what is made now is nobody's memory."""
        self.lane = 0
        """CUDA stream on which storages are asked for that are made now."""
        self.lanes: dict[int, int] = {}
        """Of the storages that were not on the one that computes."""
        self.ended: set[int] = set()
        """Storages that were emptied in place."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(is_traceable_wrapper_subclass_type(kind) for kind in types):
            return NotImplemented  # a DTensor: what it does to its own shard comes here by itself
        result = func(*args, **(kwargs or {}))
        if self.paused:
            return result
        if func in NORMS and self.keeps_fp32(func, args):
            output, *statistics = result
            result = (output, *(tensor.float() for tensor in statistics))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        if func is torch.ops.aten.new_empty_strided.default and result.untyped_storage().nbytes():
            self.strided.add(self.known[result.untyped_storage()._cdata])
        return result

    def keeps_fp32(self, func: Any, args: Any) -> bool:
        """Whether a norm's mean and deviation are kept in fp32, which fake tensors know nothing of: with
        weights of a higher precision, and those of CUDA's layer norm always."""
        weight = args[NORMS[func]]
        mixed = weight is not None and weight.dtype != args[0].dtype
        return mixed or (self.cuda and func is torch.ops.aten.native_layer_norm.default)

    def see(self, tensor: Tensor) -> None:
        """Note a tensor's storage, if it is new."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known and storage.nbytes():
            self._born(storage)

    def _born(self, storage: Any) -> None:
        number, address, size = len(self.trace.layers), storage._cdata, storage.nbytes()
        self.known[address] = number
        self.trace.layers.append(self.stack[-1] if self.stack else "")
        if self.recomputing and self.stack:
            self.trace.recomputed.add(number)
        if self.category is not None:
            self.categories[number] = self.category
        if self.lane:
            self.lanes[number] = self.lane
        self.trace.events.append(Event(Kind.ALLOCATE, number, size))
        weakref.finalize(storage, self._gone, address, number)

    def _gone(self, address: int, number: int) -> None:
        if self.done or number in self.ended:
            return
        if self.known.get(address) == number:
            del self.known[address]
        self.trace.events.append(Event(Kind.FREE, number))

    def resized(self, storage: Any, category: str) -> None:
        """A storage was emptied in place, or filled again as ``category``."""
        number = self.known.pop(storage._cdata, -1)
        if number >= 0:
            self.ended.add(number)
            self.trace.events.append(Event(Kind.FREE, number))
        if storage.nbytes():
            self.category, before = category, self.category
            self._born(storage)
            self.category = before

    def claim(self, category: str, tensors: Iterable[Tensor]) -> None:
        """Say what the storages of ``tensors`` are; those that are known to be something else stay so."""
        for tensor in tensors:
            self.see(tensor)
            number = self.known.get(tensor.untyped_storage()._cdata, -1)
            known = self.categories.get(number, "buckets")  # what a collective gave is named by its use
            if number >= 0 and known == "buckets":
                self.categories[number] = category

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Storages that were there before: weights, inputs, constants."""
        for tensor in tensors:
            self.known[tensor.untyped_storage()._cdata] = -1


def name_layers(network: nn.Module, recorder: Recorder) -> None:
    """Have the recorder know which module computes."""

    def leave(*_: Any) -> None:
        recorder.stack.pop()

    for name, module in network.named_modules():

        def enter(*_: Any, name: str = name or "network") -> None:
            recorder.stack.append(name)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)


def note_gradients(parameters: list[nn.Parameter], recorder: Recorder) -> None:
    """GRADIENT where the gradient of one of ``parameters`` is complete."""

    def complete(parameter: Tensor, number: int) -> None:
        assert parameter.grad is not None
        recorder.see(parameter.grad)
        storage = recorder.known[parameter.grad.untyped_storage()._cdata]
        recorder.trace.events.append(Event(Kind.GRADIENT, number, storage))
        if storage in recorder.strided:
            recorder.trace.copies[storage] = number

    for number, parameter in enumerate(parameters):
        parameter.register_post_accumulate_grad_hook(lambda p, number=number: complete(p, number))


def note_modules(network: nn.Module, recorder: Recorder, numbers: dict[nn.Parameter, int]) -> None:
    """ENTER and LEAVE of every module, where DeepSpeed's own hooks fetch and release its parameters.

    As there, a module's backward begins when the gradient of its output arrives and ends when that of its
    last input is complete; a module none of whose inputs has a gradient never ends.
    """
    events = recorder.trace.events
    for name, module in network.named_modules():
        number = len(recorder.trace.modules)
        recorder.trace.modules.append((name, [numbers[p] for p in module.parameters(recurse=False)]))
        _note_module(module, number, events)


def _note_module(module: nn.Module, number: int, events: list[Event]) -> None:
    begins, ends, waits = _functions(events, number)

    def before(module: nn.Module, args: Any) -> Any:
        events.append(Event(Kind.ENTER, number, 0))
        waits[0] = 0
        return _on_tensors(ends.apply, args)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        events.append(Event(Kind.LEAVE, number, 0))
        return _on_tensors(begins.apply, output)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _functions(events: list[Event], number: int) -> tuple[Any, Any, list[int]]:
    """Identities that note in backward that module ``number`` begins, and that it ends."""
    waits = [0]

    class Begins(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            return tensor.detach()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            events.append(Event(Kind.ENTER, number, 1))
            return gradient

    class Ends(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            waits[0] += tensor.requires_grad
            return tensor.detach()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            waits[0] -= 1
            if not waits[0]:
                events.append(Event(Kind.LEAVE, number, 1))
            return gradient

    return Begins, Ends, waits


def _on_tensors(function: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_on_tensors(function, item) for item in value)
    if isinstance(value, list):
        return [_on_tensors(function, item) for item in value]
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _on_tensors(function, item)
    return value
