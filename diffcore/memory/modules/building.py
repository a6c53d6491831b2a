"""A network and its inputs as fake tensors, whatever their factory does."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import random
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from diffbase.cli import InputError
from diffcore.memory.modules.job import Job

DEPENDS = (DataDependentOutputException, DynamicOutputShapeException)
CHECKPOINTING = ("gradient_checkpointing_enable", "enable_gradient_checkpointing")
"""What transformers and diffusers call it."""
RNG_BYTES = 5056
"""Of the CPU generator's state, which checkpointing keeps of each segment."""


def network_of(job: Job) -> nn.Module:
    """The network in training mode, in the precision of its weights, with checkpointing switched on.

    A factory that looks into tensors as it builds is run on the meta device, where ranges, and what it asks
    for on the CPU, have values. InputError for a factory that makes no module, or has no checkpointing.
    """
    with told(job.name), Here(), converted():
        try:
            network = job.factory()
        except DEPENDS:
            with _real(), torch.device("meta"), Ranges():
                network = job.factory()
    if not isinstance(network, nn.Module):
        raise InputError(f"{job.name}: gives {type(network).__name__!r:.80}, not a torch.nn.Module")
    if isinstance(network, torch.jit.ScriptModule) or hasattr(network, "_orig_mod"):
        raise InputError(f"{job.name}: is compiled, of which nothing is seen; give the network itself")
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    if any(map(_is_real, [*network.parameters(), *network.buffers()])):  # somebody's own: it stays as it is
        with told(job.name), FakeCopyMode(mode):
            network = copy.deepcopy(network)
    _to_fake(network, job.weights, buffers=job.precision == "pure-bf16")
    network.train()
    if not any(p.requires_grad for p in network.parameters()):
        raise InputError(f"{job.name}: no parameter has requires_grad, so nothing is trained")
    if job.checkpointing:
        _checkpointed(network, job)
    return network


@contextlib.contextmanager
def _real() -> Iterator[None]:
    """Tensors that a factory makes on the CPU have values."""
    mode = torch._C._unset_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    assert mode is not None
    try:
        yield
    finally:
        torch._C._set_dispatch_mode(mode)


def _to_fake(network: nn.Module, dtype: torch.dtype | None, buffers: bool) -> None:
    """Fake tensors on the CPU in place of all others, floating ones in ``dtype``; tied weights stay tied.

    ``buffers`` too; DeepSpeed leaves them in fp32.
    """
    made: dict[int, Any] = {}

    def of(tensor: Tensor, lower: bool) -> Tensor:
        wanted = dtype if lower and dtype is not None and tensor.is_floating_point() else tensor.dtype
        if isinstance(tensor, FakeTensor) and tensor.device.type == "cpu" and wanted == tensor.dtype:
            return tensor
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=wanted, device="cpu")

    for module in network.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    new = of(tensor.detach(), buffers or isinstance(tensor, nn.Parameter))
                    if isinstance(tensor, nn.Parameter):
                        new = tensor if new is tensor else nn.Parameter(new, tensor.requires_grad)
                    made[id(tensor)] = (tensor, new)  # the old one is kept, so that its id stays its own
                own[name] = made[id(tensor)][1]


def _checkpointed(network: nn.Module, job: Job) -> None:
    if callable(job.checkpointing):
        job.checkpointing(network)
        return
    for name in ("activation_checkpointing_enable", *CHECKPOINTING):
        if (enable := getattr(network, name, None)) is not None:
            try:
                enable()
            except ValueError as error:
                raise InputError(f"{job.name}: {error}") from error
            return
    raise InputError(
        f"{job.name}: has no gradient checkpointing of its own to switch on ("
        f"{', '.join(CHECKPOINTING)}); give a function that is called with the network"
    )


def inputs_of(job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a micro batch as fake tensors; floating ones as the weights."""
    given, dtype = job.batch(job.micro), job.weights
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    assert isinstance(mode, FakeTensorMode)

    def fake(tensor: Tensor) -> Tensor:
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        if isinstance(tensor, FakeTensor) and tensor.dtype == wanted:
            return tensor
        new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=wanted, device="cpu")
        return new.requires_grad_(tensor.requires_grad)

    arguments, named = tree_map_only(Tensor, fake, given)
    return arguments, named


def taken(network: nn.Module, named: dict[str, Any]) -> dict[str, Any]:
    """Of the named inputs those that forward has; the others are the loss's."""
    parameters = inspect.signature(network.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return named
    names = {p.name for p in parameters}
    return {name: value for name, value in named.items() if name in names}


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """What cannot be traced, or goes wrong in the network's own code, as one line that says where."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it prints a failing operator's traceback
    try:
        yield
    except DEPENDS as error:
        raise InputError(
            f"{name}: {where(error)}: {error.func} looks at values, which a plan has not; choose that branch "
            "by a setting, or give a factory or batch that leaves it out"
        ) from error
    except UnsupportedOperatorException as error:
        raise InputError(
            f"{name}: {where(error)}: {error.func} says nothing of its output's shape; "
            "torch.library.register_fake tells it"
        ) from error
    except InputError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, DEPENDS):
            with told(name):
                raise error.__cause__ from None
        text = " ".join(str(error).split())
        raise InputError(f"{name}: {where(error)}: {type(error).__name__}: {text:.300}") from error
    finally:
        log.setLevel(level)


def where(error: BaseException) -> str:
    """File and line of the last frame that is neither torch's nor this package's."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    if not frames:
        return "in torch"
    last = frames[-1]
    return f"{last.filename}:{last.lineno} in {last.name}"


def _is_real(tensor: Tensor) -> bool:
    return not isinstance(tensor, FakeTensor) and tensor.device.type != "meta"


@contextlib.contextmanager
def converted() -> Iterator[None]:
    """``Module.to`` puts new parameters in the place of fake ones, whose data cannot be swapped; tied ones
    stay tied."""
    own, made = nn.Module._apply, dict[int, tuple[Tensor, Tensor]]()

    def apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in module.children() if recurse else ():
            apply(child, fn)
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    new = fn(tensor.detach())
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, tensor.requires_grad)
                    made[id(tensor)] = (tensor, new)
                tensors[name] = made[id(tensor)][1]  # type: ignore[assignment]
        return module

    def outer(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        made.clear()
        return apply(module, fn, recurse)

    nn.Module._apply = outer  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = own  # type: ignore[method-assign]


class Here(TorchFunctionMode):
    """What is put on a GPU stays where it is: the fake device stands for it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As ``func`` with cpu for cuda."""
        if func is Tensor.cuda:
            return args[0]
        return func(*map(_here, args), **{name: _here(value) for name, value in (kwargs or {}).items()})


def _here(value: Any) -> Any:
    if isinstance(value, torch.device | str) and str(value).partition(":")[0] == "cuda":
        return torch.device("cpu")
    return value


class Ranges(TorchFunctionMode):
    """Ranges have values: rates that grow from layer to layer (``linspace(0, 0.1, 12)[i].item()``)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As ``func``, on the CPU where nothing else is said."""
        here = {"device": "cpu"} if func in (torch.linspace, torch.arange) else {}
        return func(*args, **(here | (kwargs or {})))


class Chance(TorchFunctionMode):
    """Single random numbers are all ``value``: what leaves layers out by chance (``torch.rand([]) < rate``,
    Huang et al. 2016) goes one way everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.seen = value, False

    def draw(self) -> float:
        """A number."""
        self.seen = True
        return self.value

    def _single(self, own: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: own(*args, **kwargs) if args or kwargs else self.draw()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As ``func``, or a tensor of the number."""
        if func is torch.rand:
            shape = args[0] if args and not isinstance(args[0], int) else args
            if torch.Size(shape).numel() == 1:
                return torch.tensor(self.draw()).reshape(tuple(shape))
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Any:
        """Python's own numbers and numpy's, too."""
        self.places = [(random, "random")] + [
            (np.random, name) for name in ("rand", "random", "random_sample")
        ]
        self.own = [getattr(place, name) for place, name in self.places]
        for (place, name), own in zip(self.places, self.own, strict=True):
            setattr(place, name, self._single(own))
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> Any:
        """As it was."""
        for (place, name), own in zip(self.places, self.own, strict=True):
            setattr(place, name, own)
        return super().__exit__(*error)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def counted_rng_states(recorded: bool) -> Iterator[None]:
    """Checkpointing keeps the generator's state of each segment: on the CPU where it is ``recorded``, in
    the host's memory beside a GPU."""
    get, put = torch.get_rng_state, torch.set_rng_state
    state = get()

    def fake_get() -> Tensor:
        return torch.empty(RNG_BYTES, dtype=torch.uint8) if recorded else state

    def fake_put(new_state: Tensor) -> None:
        pass

    torch.get_rng_state, torch.set_rng_state = fake_get, fake_put
    try:
        yield
    finally:
        torch.get_rng_state, torch.set_rng_state = get, put
