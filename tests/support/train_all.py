"""Train several resolved configs one after another in the same processes; their paths are the arguments.

``PATH*FACTOR`` trains with a fault: the gradient of the largest parameter is multiplied by FACTOR.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch

from diffcore.config import configure
from diffcore.engine import process_group
from diffcore.training.guards.stopping import StopFlag
from diffcore.training.guards.watchdog import Watchdog
from diffcore.training.loop import train
from diffcore.training.run import Training

UNPICKLING = ("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list")


def unpickle(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("ranks exchange a pickle, which could run code")


for name in UNPICKLING:  # DeepSpeed has its own use of them, none of it on our way
    setattr(torch.distributed, name, unpickle)

world = process_group.start(Path(sys.argv[1].partition("*")[0]).parent, 1)
try:
    for argument in sys.argv[1:]:
        path, _, factor = argument.partition("*")
        config = configure.load(Path(path))
        watchdog = Watchdog(config.run, world.rank, config.train.steps, config.guards)
        with watchdog, Training(config, world, StopFlag(), watchdog) as training:
            if factor:
                largest = max(training.engine.names, key=training.engine.size_of)
                largest.register_hook(lambda gradient, by=float(factor): gradient * by)
            train(training)
except BaseException:
    traceback.print_exc()
    os._exit(1)
sys.stdout.flush()
os._exit(0)  # as diffcore/train.py leaves
