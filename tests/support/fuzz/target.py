"""What a kind of input is to the fuzzer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffbase.cli import InputError


@dataclass(frozen=True)
class Target:
    """One kind of input from outside.

    ``feed(data, folder)`` reads ``data`` as the toolkit does; ``folder`` is new, empty and the current one.
    It returns what was read, after checks of its own, or raises one of ``told``. Anything else is a finding.
    """

    seeds: Sequence[bytes]
    """Whole, valid examples."""
    feed: Callable[[bytes, Path], object]
    words: Sequence[bytes] = ()
    """What is put in besides ``mutate.WORDS``: names and signs of this kind of input."""
    mutate: Callable[[bytes, random.Random], bytes] | None = None
    """Of an example something that is nearly one, where plain damage would not get past checksums.

    It takes the place of ``mutate.mutate`` in half of the cases."""
    told: tuple[type[Exception], ...] = (InputError,)
    """How bad input is answered: with one line."""
