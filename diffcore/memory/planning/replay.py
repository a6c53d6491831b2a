"""A whole training step on one rank, allocation by allocation: the traced micro batch inside DeepSpeed.

The trace says when the network's tensors and gradients come and go. What DeepSpeed does around them depends
on the stage: buckets, reduced slices, gathered parameters, the flat fp32 gradient of the optimizer. Each
stage's backward and step are written once more as the sequence of their allocations (deepspeed 0.19; ``zero``
and ``zero3``), so that any peak of any setting is found in milliseconds, without DeepSpeed and without its
processes.
"""

from __future__ import annotations

from diffcore.memory.planning import muon
from diffcore.memory.planning.activations import Trace
from diffcore.memory.planning.states import Sharing, resident
from diffcore.memory.planning.stream import Stream
from diffcore.memory.planning.zero import Overlapped, Partitioned, Plain
from diffcore.memory.planning.zero3 import Sharded


def replay(trace: Trace, sharing: Sharing, steps: int = 2) -> Stream:
    """Optimizer steps, from the second on in their steady state: ``sharing.accumulation`` micro batches (at
    most three: the later ones are alike) and the optimizer. Marks of a step: start, forward (of each micro
    batch), backward, step."""
    stream = Stream()
    numels = [p.numel for p in trace.parameters]
    late = []
    optimizer = muon.states(sharing, numels) if sharing.matrices else None
    for block in resident(sharing, numels, trace.buffers, trace.inputs, optimizer):
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
