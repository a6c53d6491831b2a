"""A network built in the memory of this rank's share: what ZeRO-3 starts from.

Networks initialise their parameters as they please: a layer draws its weights, a parent sets them to zero or
draws them again. What is drawn, and in which order, decides every weight. So the network is built twice. The
first time nothing is drawn: parameters are shapes without memory, and it is noted how often each is
overwritten (by ``uniform_``, ``normal_``, ``zero_``, ...). The second time each operation runs as ever, in
its order and from the same generator; but a parameter has memory only while it is overwritten, and after the
last time DeepSpeed shares it out. The weights are those of the plain way bit for bit, on every world size,
and a rank holds its share and one parameter. A parameter with which something else is done (a row is set,
values are read) is whole until the network is there.

DeepSpeed's own ``zero.Init`` around a constructor shares out each module when its own constructor ends:
whatever a parent does to it later acts on nothing, without a word.
"""

from __future__ import annotations

import copy
import threading
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffcore.config.tree import Config
from diffcore.engine.engine import check_device, checked, forget_earlier_engines
from diffcore.engine.ranks import World, torch_dtype

aten = torch.ops.aten
OVERWRITING = (aten.uniform_, aten.normal_, aten.zero_, aten.fill_, aten.copy_)
"""Operations after which nothing is left of what was there before, nor of the operation anything but that."""


def build(make: Callable[[], nn.Module], config: Config, world: World) -> nn.Module:
    """The network that ``make()`` returns; under ZeRO-3 each rank holds its share of the weights alone.

    ``make`` is called twice then, and must do the same each time. A collective. InputError as of ``Engine``,
    which takes the network from here.
    """
    if config.engine.zero < 3:
        return make()
    check_device(config, world)
    written, numels = _plan(make)
    forget_earlier_engines()
    tree = checked(config, world.size, numels)
    share_out = _sharing(tree, torch_dtype(config.engine.arithmetic.weights))
    second = _Sharing(written, share_out)
    with second:
        network = make()
    second.end()
    for parameter in network.parameters():
        share_out(parameter)  # those that are whole still
    # The order that DeepSpeed would have met them in: it lays out its buffers by these numbers.
    numbers = sorted(parameter.ds_id for parameter in network.parameters())  # type: ignore[attr-defined]
    for parameter, number in zip(network.parameters(), numbers, strict=True):
        parameter.ds_id = number  # type: ignore[attr-defined]
    return network


def _plan(make: Callable[[], nn.Module]) -> tuple[list[int | None], list[int]]:
    """How often each parameter is overwritten (``_Noting.written``), and the elements of the network's."""
    # Forked: parameters that come with values draw them here too.
    with torch.random.fork_rng(devices=[]), _Noting() as first:
        network = make()
    return first.written(network), [parameter.numel() for parameter in network.parameters()]


def _sharing(tree: dict[str, Any], dtype: torch.dtype) -> Callable[[nn.Parameter], None]:
    """What casts a parameter to ``dtype`` and leaves this rank's share of it; one that is shared stays."""
    import deepspeed

    # Of a module without parameters: the settings are read once, and the linear layer is put in place.
    init = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=copy.deepcopy(tree), dtype=dtype)

    def share_out(parameter: nn.Parameter) -> None:
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)
            init._convert_to_zero_parameters([parameter])

    return share_out


@dataclass
class _Life:
    """A parameter while its network is built."""

    parameter: nn.Parameter
    storage: torch.UntypedStorage
    """Held, so that no other comes to be where it is."""
    bytes: int
    written: int = 0
    """How often it was overwritten."""

    def resize(self, size: int) -> None:
        """Give the parameter its memory, or take it; shape and strides, which constructors look at, stay."""
        self.storage.resize_(size)


class _Watching(TorchDispatchMode):
    """Sees every operation on the parameters of modules that are being built."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lives: list[_Life] = []
        self._known: set[nn.Parameter] = set()
        self._at: dict[int, int] = {}
        """A storage -> number of the parameter whose it is."""
        self._busy = False
        self._thread = threading.get_ident()

    def __enter__(self) -> Any:
        self._hook = register_module_parameter_registration_hook(self._register)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self._hook.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _register(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or parameter in self._known or threading.get_ident() != self._thread:
            return  # the operations of other threads are not seen
        self._known.add(parameter)
        storage = parameter.untyped_storage()
        alone = storage.nbytes() == parameter.numel() * parameter.itemsize > 0 and storage.resizable()
        if parameter.device.type != "cpu" or not alone or storage._cdata in self._at:
            return
        self.lives.append(_Life(parameter, storage, storage.nbytes()))
        self._at[storage._cdata] = len(self.lives) - 1
        self._busy = True  # what follows is not the network's
        self.registered(len(self.lives) - 1)
        self._busy = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        tensors = [] if self._busy else [t for t in tree_leaves((args, named)) if isinstance(t, Tensor)]
        found = [number for tensor in tensors if (number := self.number(tensor)) is not None]
        if not found:
            return func(*args, **named)
        whole = len(found) == 1 and func.overloadpacket in OVERWRITING and self.number(args[0]) is not None
        if whole and args[0].shape == self.lives[found[0]].parameter.shape:
            return self.overwritten(found[0], func, args, named)
        for number in found:
            self.used(number)
        return func(*args, **named)

    def number(self, tensor: Tensor) -> int | None:
        """The parameter that has this tensor's memory, if it is watched."""
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        return self._at.get(tensor.untyped_storage()._cdata) if plain else None

    def leave(self, number: int) -> None:
        """Watch a parameter no longer."""
        self._at.pop(self.lives[number].storage._cdata, None)

    @abstractmethod
    def registered(self, number: int) -> None:
        """A module has got a new parameter."""

    @abstractmethod
    def overwritten(self, number: int, func: Any, args: Any, named: Any) -> Any:
        """Do an operation that leaves nothing of a parameter's values."""

    @abstractmethod
    def used(self, number: int) -> None:
        """Another operation on a parameter, or on a tensor that shares its memory, comes."""


class _Noting(_Watching):
    """The first time: no parameter has memory, and nothing is written into any."""

    def registered(self, number: int) -> None:
        """Without memory from the beginning."""
        self.lives[number].resize(0)

    def overwritten(self, number: int, func: Any, args: Any, named: Any) -> Any:
        """Count it."""
        self.lives[number].written += 1
        return args[0]

    def used(self, number: int) -> None:
        """From here on it is a tensor like others, so that a loop that waits for its values ends."""
        life = self.lives[number]
        if number == self.number(life.parameter):
            life.resize(life.bytes)
            life.parameter.data.zero_()
        self.leave(number)

    def written(self, network: nn.Module) -> list[int | None]:
        """How often each was overwritten; None of what is not the network's or was used in another way."""
        own = set(network.parameters())
        seen = [
            n == self.number(life.parameter) and life.parameter in own for n, life in enumerate(self.lives)
        ]
        return [life.written if yes else None for life, yes in zip(self.lives, seen, strict=True)]


class _Sharing(_Watching):
    """The second time: a parameter has memory while it is overwritten, and then each rank has its share."""

    def __init__(self, written: list[int | None], share_out: Callable[[nn.Parameter], None]) -> None:
        super().__init__()
        self._written, self._share_out = written, share_out
        self._left: dict[int, Tensor] = {}
        """What DeepSpeed left of the module's own tensor."""

    def registered(self, number: int) -> None:
        """With what it has: its values, or what ``torch.empty`` found."""
        if self._written[number] is None:
            self.leave(number)
        else:
            self._after(number)

    def overwritten(self, number: int, func: Any, args: Any, named: Any) -> Any:
        """Do it, in memory that is made for it."""
        if number in self._left:
            self.used(number)
        life = self.lives[number]
        life.resize(life.bytes)
        func(*args, **named)
        life.written += 1
        self._after(number)
        return args[0]

    def used(self, number: int) -> None:
        """The first time it was not."""
        raise AssertionError("the network was built otherwise the second time")

    def _after(self, number: int) -> None:
        life = self.lives[number]
        whole = life.parameter.data
        if life.written == self._written[number]:
            self._share_out(life.parameter)
            self._left[number], life.parameter.data = life.parameter.data, whole
        life.resize(0)

    def end(self) -> None:
        """Leave the parameters as DeepSpeed did."""
        for number, written in enumerate(self._written):
            assert written is None or number in self._left, "it was built otherwise the second time"
        for number, left in self._left.items():
            self.lives[number].parameter.data = left
