"""Inputs of a forward call, as tensors, as text or by a function of the micro batch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from diffbase.cli import InputError
from diffcore.memory.modules.job import Inputs

DTYPES = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64,
    "int64": torch.int64, "int32": torch.int32, "int16": torch.int16, "int8": torch.int8,
    "uint8": torch.uint8, "bool": torch.bool, "complex64": torch.complex64,
}  # fmt: skip
TEXT = re.compile(r"(\w+)?\[([\w, ]*)\]")
MOST = 2**40
"""Elements of a tensor, at most."""


def batch_of(inputs: Any) -> tuple[Callable[[int], Inputs], int | None]:
    """(arguments for a micro batch, its size where the inputs fix it). InputError for what are none."""
    if callable(inputs) and not isinstance(inputs, Tensor):
        return lambda micro: arguments(inputs(micro), micro), None
    leaves = tree_leaves(inputs)
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        arguments(inputs, 1)  # refused now, if it is no text of a tensor
        return lambda micro: arguments(inputs, micro), None
    first = next(leaf for leaf in leaves if isinstance(leaf, Tensor))
    return lambda micro: arguments(inputs, micro), int(first.shape[0]) if first.ndim else 1


def arguments(given: Any, micro: int) -> Inputs:
    """Positional and named arguments; tensors made of text."""
    made = tree_map(lambda leaf: tensor(leaf, micro) if isinstance(leaf, str) else leaf, given)
    if isinstance(made, Mapping):
        return (), dict(made)
    if isinstance(made, Sequence) and len(made) == 2 and isinstance(made[1], Mapping):
        first = made[0] if isinstance(made[0], tuple | list) else (made[0],)
        return tuple(first), dict(made[1])
    if isinstance(made, tuple | list):
        return tuple(made), {}
    if isinstance(made, Tensor):
        return (made,), {}
    raise InputError(
        f"inputs: {type(made).__name__!r:.60} is no tensor, and neither a tuple nor a dict of them"
    )


def tensor(text: str, micro: int) -> Tensor:
    """``"int64[B,1024]"`` as zeros of that shape, B being ``micro``; float32 where no dtype is said."""
    match = TEXT.fullmatch(text.strip())
    if not match:
        raise InputError(f"inputs {text!r:.80}: expected DTYPE[SIZE,SIZE,...], such as float32[B,3,64,64]")
    dtype = match[1] or "float32"
    if dtype not in DTYPES:
        raise InputError(f"inputs {text!r:.80}: dtypes are {', '.join(DTYPES)}")
    shape = []
    for size in filter(None, (part.strip() for part in match[2].split(","))):
        if size != "B" and not (size.isdecimal() and size.isascii()):
            raise InputError(f"inputs {text!r:.80}: {size!r:.40} is neither a size nor B, the micro batch")
        shape.append(micro if size == "B" else min(int(size), MOST + 1))
    if math.prod(shape) > MOST:
        raise InputError(f"inputs {text!r:.80}: more than 2^40 elements")
    return torch.zeros(shape, dtype=DTYPES[dtype])


def named(texts: Sequence[str]) -> Any:
    """Words of a command line, ``NAME=DTYPE[...]`` or ``DTYPE[...]`` by position, as inputs."""
    positional: list[str] = []
    by_name: dict[str, str] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals:
            if by_name:
                raise InputError(f"inputs {text!r:.80}: one without a name comes before those with one")
            positional.append(text)
        elif not name.isidentifier() or name in by_name:
            raise InputError(f"inputs {text!r:.80}: {name!r:.40} is no name, or there twice")
        else:
            by_name[name] = rest
    return (tuple(positional), by_name)
