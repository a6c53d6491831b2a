"""A whole training step on one rank, allocation by allocation: the traced micro batch inside DeepSpeed.

The trace says when the network's tensors and gradients come and go. What DeepSpeed does around them depends
on the stage: buckets, reduced slices, gathered parameters, the flat fp32 gradient of the optimizer. Each
stage's backward and step are written once more as the sequence of their allocations (deepspeed 0.19; ``zero``
and ``zero3``), so that any peak of any setting is found in milliseconds, without DeepSpeed and without its
processes.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffcore.memory.planning import muon
from diffcore.memory.planning.recording import Trace
from diffcore.memory.planning.states import Sharing, Work, resident
from diffcore.memory.planning.stream import Stream
from diffcore.memory.planning.zero import Overlapped, Partitioned, Plain
from diffcore.memory.planning.zero3 import Sharded


def replay(trace: Trace, sharing: Sharing, steps: int = 2, optimizer: Work | None = None) -> Stream:
    """Optimizer steps, from the second on in their steady state: ``sharing.accumulation`` micro batches (at
    most three: the later ones are alike) and the optimizer. Marks of a step: start, forward and backward (of
    each micro batch), step.

    ``optimizer``: what another than the project's own keeps and works in."""
    stream = Stream()
    numels = [p.numel for p in trace.parameters if not p.frozen]
    frozen = [p.numel for p in trace.parameters if p.frozen]
    late = []
    kept: Sequence[int] | None = muon.states(sharing, numels) if sharing.matrices else None
    if optimizer is not None:
        kept = optimizer.kept
    for block in resident(sharing, numels, trace.buffers, trace.inputs, kept, frozen):
        if sharing.stage == 0 and block.category == "optimizer":
            late.append(block)  # the first step makes them, of what activations have left in the allocator
        else:
            stream.allocate(block.category, block.size, host=block.host and not sharing.cpu)
    stages = {
        0: Overlapped if sharing.world > 1 and sharing.overlap else Plain,
        1: Partitioned,
        2: Partitioned,
        3: Sharded,
    }
    stage = stages[sharing.stage](stream, trace, sharing)
    stage.optimizer = optimizer
    count = min(sharing.accumulation, 3)
    for _ in range(steps):
        stream.mark("start")
        for micro_step in range(count):
            stage.micro_batch(last=micro_step == count - 1)
            stream.mark("backward")
        while late:
            stream.allocate("optimizer", late.pop(0).size)
        stage.step()
        stream.mark("step")
    return stream
