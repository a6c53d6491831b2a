"""The command line that starts what was chosen, quoted for a shell. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from diffcore.memory.fitting.timing import Layout, Setting


def command(
    config: str,
    overrides: Sequence[str],
    setting: Setting,
    layout: Layout,
    micro: int,
    size: int | None = None,
) -> str:
    """``diffcore train`` for one GPU, ``diffcore submit`` for more: --cluster then says where.

    ``overrides``: dotted flags that were given beside; ``size``: the global batch, where it is not the
    config's.
    """
    chosen: dict[str, Any] = {f"engine.{name}": value for name, value in asdict(setting).items()}
    chosen["batch.micro"] = micro
    if size is not None:
        chosen["batch.size"] = size
    words = ["diffcore", "train"]
    if layout.world > 1:
        words = ["diffcore", "submit", "--nodes", str(layout.nodes), "--gpus-per-node", str(layout.per_node)]
    return shlex.join([*words, "--config", config, *without(overrides, chosen), *flags(chosen)])


def flags(values: Mapping[str, Any]) -> list[str]:
    """Dotted flags of settings."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def without(overrides: Sequence[str], names: Mapping[str, Any]) -> Iterator[str]:
    """``overrides`` without the flags of these settings and their values."""
    skip = False
    for word in overrides:
        flag, equals, _ = word.partition("=")
        if flag.startswith("--"):
            skip = flag[2:] in names
            if skip and equals:
                skip = False
                continue
        if not skip:
            yield word
