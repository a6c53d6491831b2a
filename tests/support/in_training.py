"""A program that looks at trainings from inside: for each config of its arguments, on each of its ranks."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from diffcore.config import configure
from diffcore.engine import process_group
from diffcore.training.guards.stopping import StopFlag
from diffcore.training.guards.watchdog import Watchdog
from diffcore.training.run import Training


def report(observe: Callable[[Training], Any]) -> NoReturn:
    """Print ``{CONFIG: observe(its training)}`` as one line of JSON on rank 0, and end the process."""
    code = 0
    try:
        world = process_group.start(Path(sys.argv[1]).parent, 1)
        found = {}
        for path in sys.argv[1:]:
            config = configure.load(Path(path))
            watchdog = Watchdog(config.run, world.rank, config.train.steps, config.guards)
            with watchdog, Training(config, world, StopFlag(), watchdog) as training:
                found[path] = observe(training)
        if world.main:
            print(json.dumps(found), flush=True)
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)  # as diffcore/train.py leaves
