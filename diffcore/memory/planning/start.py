"""What a start takes on a rank under ZeRO-3, before the first step: closed forms of its peaks.

The letters are those of ``states`` (S elements of this rank's share, w bytes per weight, B
``reduce_bucket_size``), p the elements of the largest parameter and p' those padded to a multiple of N. In
the order of the start (``engine.construction``; deepspeed 0.19, runtime/zero/stage3.py):

    building the network   w S + 4 p, and w p more where it is cast; on a GPU, as the host draws, w S + w p
    gradient hooks         (2 w + 4) S + w B + w p': each parameter is gathered once
    the EMA is there       (2 w + 8) S + w B, and 4 S more for each of ``ema.posthoc``

What comes between is less: the flat copies are of shares, made while there is neither bucket nor EMA.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffcore.memory.planning.states import FULL, Sharing


def start_peak(sharing: Sharing, numels: Sequence[int]) -> int | None:
    """Most bytes on the device before the first step, for parameters of ``numels`` elements.

    To within the largest parameter, of which it depends on the order how much else is there. None where it is
    not planned: under ZeRO-0 to 2, where every rank builds the whole network, and with ``offload``.
    """
    s, w = sharing, sharing.itemsize
    if s.stage < 3 or s.offload or s.offload_parameters:
        return None
    share, largest = s.partition(numels), max(numels)
    drawn = (FULL if w == FULL else FULL + w) if s.cpu else w
    made = (2 * w + FULL) * share + (w * s.bucket if s.contiguous else 0)
    gathered = w * s.share(largest) * s.world if s.gathers else 0
    return max(w * share + drawn * largest, made + gathered, made + FULL * share * s.averages)
