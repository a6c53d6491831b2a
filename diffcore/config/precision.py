"""How a ZeRO stage computes in a precision: the one table that engine, DeepSpeed's JSON and memory plans
read.

Under ZeRO-0 DeepSpeed keeps no fp32 masters, so bf16 and fp16 are torch.autocast's, over fp32 weights. ZeRO-1
to 3 compute with weights in the precision itself and keep fp32 masters beside them, also of fp32 weights.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's names."""
BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Arithmetic:
    """One row of the table."""

    weights: Precision
    """Of the weights that forward uses, and of their gradients."""
    lower: Precision
    """What autocast computes in where it may; the same as ``weights`` without autocast."""
    settings: Mapping[str, Any]
    """What DeepSpeed's JSON says of it."""
    on_cpu: bool = True
    """Whether DeepSpeed takes it without a GPU."""

    @property
    def autocast(self) -> bool:
        """Whether torch.autocast chooses the precision of each operation."""
        return self.lower != self.weights

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return BYTES[self.weights]


def _masters(precision: Precision, on_cpu: bool = True) -> Arithmetic:
    """fp16 has a dynamic loss scale, DeepSpeed's default."""
    named = {name: {"enabled": precision == name} for name in ("bf16", "fp16")}
    return Arithmetic(precision, precision, named, on_cpu)


def _autocast(precision: Precision) -> Arithmetic:
    dtype = DTYPES[precision]
    return Arithmetic("fp32", precision, {"torch_autocast": {"enabled": True, "dtype": dtype}})


PLAIN: dict[Precision, Arithmetic] = {
    "fp32": Arithmetic("fp32", "fp32", {}),
    "bf16": _autocast("bf16"),
    "fp16": _autocast("fp16"),
}
"""ZeRO-0."""
PARTITIONED: dict[Precision, Arithmetic] = {
    "fp32": _masters("fp32"),
    "bf16": _masters("bf16"),
    "fp16": _masters("fp16", on_cpu=False),
}
"""ZeRO-1 to 3."""


def arithmetic(zero: int, precision: Precision) -> Arithmetic:
    """How ZeRO stage ``zero`` computes in ``precision``."""
    return (PARTITIONED if zero else PLAIN)[precision]
