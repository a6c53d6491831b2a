"""What went wrong, as one line and an exit code (``exits``), where a traceback would not help the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from diffbase.cli import InputError, one_line
from diffbase.exits import BAD_INPUT, FATAL, RETRYABLE, RunFailedError
from diffbase.system_error import DISK, told
from diffcore.config.tree import Config
from diffcore.engine.ranks import StrangerError, World, is_lost_peer
from diffcore.engine.rendezvous import TakenPortError
from diffcore.memory import oom

if TYPE_CHECKING:
    from diffcore.training.run import Training


@dataclass(frozen=True)
class Trouble:
    """An exit code of ``diffbase.exits``, and the line that says why."""

    code: int
    line: str


def explain(
    error: BaseException, training: Training | None, config: Config, world: World | None
) -> Trouble | None:
    """The trouble behind ``error``; None for a bug, which keeps its traceback."""
    text, doing = one_line(str(error)), training.watchdog.doing if training else "the start"
    if isinstance(error, InputError):
        return Trouble(BAD_INPUT, text)
    if isinstance(error, RunFailedError):
        return Trouble(FATAL, text)
    if world is not None and oom.is_out_of_memory(error):
        engine, ema = (training.engine, training.ema) if training else (None, None)
        return Trouble(FATAL, f"{oom.explain(config, world, engine, ema, error)} ({doing})")
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        code = RETRYABLE if error.errno in DISK else BAD_INPUT
        return Trouble(code, one_line(f"{told(error)} ({doing})"))
    if isinstance(error, StrangerError | TakenPortError):
        return Trouble(RETRYABLE, text)
    if isinstance(error, RuntimeError) and is_lost_peer(error):
        return Trouble(RETRYABLE, f"another rank is gone ({doing}): {text[:200]}")
    if isinstance(error, torch.AcceleratorError):
        return Trouble(RETRYABLE, f"the device failed in {doing}: {text[:200]}")
    return None
