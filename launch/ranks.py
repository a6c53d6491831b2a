"""python -m launch.ranks: the deepspeed launcher's arguments for a run on all of this machine.

One process per GPU; without a GPU one per core, four at most.
"""

from __future__ import annotations

import os

from diffbase.line import say
from diffbase.machine.nvml import count_gpus
from launch.ask.cpu_ranks import cpu_ranks


def launcher_arguments() -> str:
    """``--num_gpus N``, or nothing where CUDA_VISIBLE_DEVICES already says which GPUs are ours.

    The launcher takes that variable for itself, but deletes it when it is given a number.
    """
    if gpus := count_gpus():
        return "" if os.environ.get("CUDA_VISIBLE_DEVICES") else f"--num_gpus {gpus}"
    return f"--num_gpus {cpu_ranks()}"


if __name__ == "__main__":
    say(launcher_arguments())
