"""What one forward and backward allocates, from fake tensors: no data, no GPU, the training's own code.

The network and the loss of ``train.py`` run under FakeTensorMode, where a tensor has a shape, a dtype and a
lifetime but no memory. A dispatch mode notes when each storage comes and goes, and hooks note which layer
made it and when each gradient is complete. The device is a fake ``cpu``: fake ``cuda`` needs a CUDA build,
and ``meta`` takes other code paths, which allocate other tensors.

Under ZeRO-0 bf16 and fp16 are torch.autocast's. The CPU and CUDA have different lists of what autocast runs
in fp32; CUDA's is put on top of the CPU's here, for the operators that networks of this project use.

Bytes are the tensors' own; what a device's allocator makes of them is allocator.py's business.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffcore import models
from diffcore.config.diffusion import FIRST_DRAWS
from diffcore.config.tree import Config
from diffcore.diffusion.loss import WEIGHTS, denoising_loss
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine import staging
from diffcore.engine.orthogonal.matrices import matrices
from diffcore.engine.ranks import torch_dtype
from shards.schema import Attribute

CUDA_IN_FP32 = ("group_norm", "layer_norm", "softmax")
"""Functions of torch.nn.functional that autocast_mode.h runs in fp32 on CUDA; the CPU in what it is given."""
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


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a trace; ``Kind`` says what ``what`` and ``size`` are."""

    kind: Kind
    what: int
    size: int = 0


@dataclass(frozen=True)
class Parameter:
    """A trainable parameter of the traced network."""

    name: str
    shape: tuple[int, ...]
    matrix: tuple[int, int] | None = None
    """Rows and columns, where it would be one to the optimizer Muon."""

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


class _Recorder(TorchDispatchMode):
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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
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
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self.known or not size:
            return
        number = len(self.trace.layers)
        self.known[address] = number
        self.trace.layers.append(self.stack[-1] if self.stack else "")
        if self.recomputing and self.stack:
            self.trace.recomputed.add(number)
        self.trace.events.append(Event(Kind.ALLOCATE, number, size))
        weakref.finalize(storage, self._gone, address, number)

    def _gone(self, address: int, number: int) -> None:
        if self.done:
            return
        if self.known.get(address) == number:
            del self.known[address]
        self.trace.events.append(Event(Kind.FREE, number))

    def ignore(self, tensors: Iterator[Tensor] | list[Tensor]) -> None:
        """Storages that were there before: weights, inputs, constants."""
        for tensor in tensors:
            self.known[tensor.untyped_storage()._cdata] = -1


@contextmanager
def _replaced(config: Config, cuda: bool) -> Iterator[None]:
    """torch.nn.functional as a run of this config on CUDA or on the CPU has it."""
    others: dict[str, Any] = {}
    if config.engine.zero == 3:
        linear: Callable[..., Tensor] = _Zero3Linear.apply
        others["linear"] = lambda x, weight, bias=None: linear(x, weight, bias)
    if config.engine.arithmetic.autocast and cuda:
        others |= {name: _in_fp32(getattr(F, name)) for name in CUDA_IN_FP32}
    own = {name: getattr(F, name) for name in others}
    try:
        for name, function in others.items():
            setattr(F, name, function)
        yield
    finally:
        for name, function in own.items():
            setattr(F, name, function)


def _in_fp32(function: Any) -> Any:
    """``function`` as autocast runs it on CUDA."""

    def call(x: Tensor, *args: Any, **named: Any) -> Tensor:
        result: Tensor = function(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **named)
        return result

    return call


class _Zero3Linear(torch.autograd.Function):
    """What DeepSpeed puts in the place of linear under ZeRO-3 (runtime/zero/linear.py)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        if x.dim() == 2 and bias is not None:
            return torch.addmm(bias, x, weight.t())
        output = x.matmul(weight.t())
        if bias is not None:
            output += bias
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_x = gradient.matmul(weight) if ctx.needs_input_grad[0] else None
        of_weight = rows.t().matmul(x.reshape(-1, x.shape[-1])) if ctx.needs_input_grad[1] else None
        of_bias = None
        if bias is not None and ctx.needs_input_grad[2]:
            of_bias = gradient.sum(list(range(gradient.dim() - 1)))
        return of_x, of_weight, of_bias


def trace(
    config: Config,
    schema: list[Attribute],
    size: int,
    micro: int,
    modules: bool = False,
    cuda: bool = True,
    packed: int | None = None,
) -> Trace:
    """Record one micro batch of ``micro`` samples of ``size`` pixels under ``config``.

    ``modules`` also notes where modules begin and end, in forward and backward, as ZeRO-3 sees them;
    ``cuda`` is whether autocast and Muon are to be CUDA's, and samples wait on the device, as packed: of
    ``packed`` pixels (None: ``size``).
    """
    arithmetic = config.engine.arithmetic
    staged = cuda and config.diffusion.draws != FIRST_DRAWS
    lower, dtype = torch_dtype(arithmetic.lower), torch_dtype(arithmetic.weights)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = _cast(models.build(config.model, schema, size), dtype)
        network = models.prepare(network, config.engine.model_copy(update={"compile": "off"}))
        schedule = NoiseSchedule.of(config.diffusion)
        weights_T = WEIGHTS[config.diffusion.loss_weight](schedule)
        images, t_B, labels, keep_B = models.example_batch(micro, schema, size)
        draws = Draws(t_B, torch.empty_like(images), keep_B)
        inputs = [images, labels, draws.eps_BCHW, draws.t_B, draws.keep_B]
        # To draw takes 4.5 times the noise for a moment, before the network's activations, which are more.
        waiting = staging.buffers(micro, packed or size, len(schema), "cpu") if staged else []
        if config.diffusion.timestep_density != "uniform":
            waiting = [*waiting, torch.empty(config.diffusion.timesteps, dtype=torch.int64)]  # timesteps.ends
        constants = [weights_T, *(t for t in vars(schedule).values() if isinstance(t, Tensor))]
        named = list(network.named_parameters())
        wide = matrices(network)
        result = Trace(
            micro,
            dtype,
            [Parameter(name, tuple(p.shape), wide.get(name)) for name, p in named],
            sum(b.untyped_storage().nbytes() for b in [*network.buffers(), *constants]),
            sum(t.untyped_storage().nbytes() for t in inputs + waiting),
            cuda=cuda,
        )
        recorder = _Recorder(result, cuda)
        recorder.ignore([p for _, p in named] + list(network.buffers()) + inputs + constants)
        _name_layers(network, recorder)
        if modules:
            _note_modules(network, recorder, {p: i for i, (_, p) in enumerate(named)})
        _note_gradients([p for _, p in named], recorder)

        def forward(x_BCHW: Tensor, *rest: Tensor) -> Tensor:
            with torch.autocast("cpu", lower, enabled=arithmetic.autocast):
                output: Tensor = network(x_BCHW.to(dtype), *rest)
                return output

        with recorder, _replaced(config, cuda):
            loss = denoising_loss(forward, schedule, weights_T, images, labels, draws).mean()
            result.events.append(Event(Kind.TURN, 0))
            recorder.recomputing = True
            loss.backward()
            del loss
        recorder.done = True
    return result


def _cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Module.to cannot swap fake tensors' data: new parameters take their place. Buffers follow too."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to(dtype))
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)
    return network


def _name_layers(network: nn.Module, recorder: _Recorder) -> None:
    def leave(*_: Any) -> None:
        recorder.stack.pop()

    for name, module in network.named_modules():

        def enter(*_: Any, name: str = name or "network") -> None:
            recorder.stack.append(name)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)


def _note_gradients(parameters: list[nn.Parameter], recorder: _Recorder) -> None:
    def complete(parameter: Tensor, number: int) -> None:
        assert parameter.grad is not None
        recorder.see(parameter.grad)
        storage = recorder.known[parameter.grad.untyped_storage()._cdata]
        recorder.trace.events.append(Event(Kind.GRADIENT, number, storage))
        if storage in recorder.strided:
            recorder.trace.copies[storage] = number

    for number, parameter in enumerate(parameters):
        parameter.register_post_accumulate_grad_hook(lambda p, number=number: complete(p, number))


def _note_modules(network: nn.Module, recorder: _Recorder, numbers: dict[nn.Parameter, int]) -> None:
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
