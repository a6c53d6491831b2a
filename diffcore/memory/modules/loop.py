"""A training loop of torch, on fake tensors, allocation by allocation: one process, DDP, or FSDP2.

    step: for each micro batch forward under autocast, loss, backward; optimizer, average; gradients to None

DDP is that loop beside buckets of all gradients' size, which live as long as it does; its gradients are
copied into them, or are views of them (Li et al. 2020, section 4.2; torch/csrc/distributed/c10d/reducer.cpp).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from diffcore.memory.modules import libraries, sharded
from diffcore.memory.modules.building import Here, counted_rng_states, inputs_of, network_of, taken, told
from diffcore.memory.modules.job import Inputs, Job
from diffcore.memory.modules.on_cuda import INSIDE, OnCuda, backward
from diffcore.memory.modules.optimizers import AnyNumber, as_on_cuda, states_of
from diffcore.memory.planning.activations import replaced
from diffcore.memory.planning.plan import layers
from diffcore.memory.planning.recording import Event, Kind, Recorder, Trace, kept, name_layers
from diffcore.memory.planning.stream import Stream

PHASES = ("start", "forward", "backward", "step")
STEPS = 2
"""The second finds the optimizer's states, and what was made once."""
MOST = 3
"""Micro batches of a step that are run; further ones are as the last."""


@dataclass(frozen=True)
class Recorded:
    """A loop that was run."""

    stream: Stream
    parameters: int
    """Elements of all parameters, of the whole network."""
    layers: tuple[tuple[str, int], ...]
    """Modules and the bytes that they leave for backward in a micro batch, largest first."""
    recurrent: tuple[str, ...] = ()
    """Names of the layers in it whose kernels keep what no shape tells."""


def record(job: Job) -> Recorded:
    """Two steps. InputError where the network cannot be traced."""
    trace = Trace(job.micro, torch.float32, [], 0, 0)
    with contextlib.ExitStack() as stack:
        mesh = (
            stack.enter_context(sharded.fake_group(job.rank, job.world)) if job.strategy == "fsdp2" else None
        )
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        recorder = Recorder(trace, job.cuda)
        # What the building takes is not planned: large networks are built in shards, or on the host.
        loop = _Loop(job, recorder, mesh)
        stack.enter_context(sharded.resizing(recorder))
        stack.enter_context(counted_rng_states(recorded=not job.cuda))
        if mesh is not None:
            stack.enter_context(sharded.buckets(recorder))
            stack.enter_context(sharded.shapes_unseen(recorder))
        stack.enter_context(recorder)
        with told(job.name), as_on_cuda(job.cuda), functions(job):
            for _ in range(STEPS):
                loop.step()
        recorder.done = True
    left = layers(trace, recorder.categories)
    return Recorded(_stream(trace, recorder), loop.parameters, left, recurrent(loop.network))


@contextlib.contextmanager
def functions(job: Job) -> Iterator[None]:
    """Torch's functions, and the libraries' own, as they run in the training that is planned."""
    with libraries.as_trained(), unlooked(), job.chance, Here(), contextlib.ExitStack() as stack:
        if job.cuda:
            stack.enter_context(replaced(INSIDE))
            stack.enter_context(OnCuda())
        yield


@contextlib.contextmanager
def unlooked() -> Iterator[None]:
    """torch's transformer looks whether a mask is the causal one; here it is one of somebody's."""
    from torch.nn.modules import transformer

    own = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = own


def micro_batch(
    job: Job,
    network: nn.Module,
    arguments: Inputs,
    recorder: Recorder,
    turned: Callable[[], None] = lambda: None,
) -> None:
    """Forward under autocast, loss and backward; ``turned`` is called between them."""
    lower = job.autocast
    with torch.autocast("cpu", lower or torch.bfloat16, enabled=lower is not None):
        loss = job.loss(network(*arguments[0], **taken(network, arguments[1])), arguments)
    recorder.trace.events.append(Event(Kind.TURN, 0))
    turned()
    recorder.recomputing = True
    backward(loss)
    recorder.recomputing = False


def recurrent(network: nn.Module) -> tuple[str, ...]:
    """Fused recurrent layers: their workspace is the library's (oneDNN, cuDNN)."""
    return tuple(sorted({type(m).__name__ for m in network.modules() if isinstance(m, nn.RNNBase)}))


class _Loop:
    def __init__(self, job: Job, recorder: Recorder, mesh: Any) -> None:
        self.job, self.recorder = job, recorder
        self.network = network_of(job)
        self.parameters = sum(p.numel() for p in self.network.parameters())
        name_layers(self.network, recorder)
        if mesh is not None:
            with told(job.name):
                sharded.shard(self.network, job, mesh)
        claim = recorder.claim
        claim("parameters", map(sharded.local, self.network.parameters()))
        claim("data", self.network.buffers())
        with told(job.name):
            self.arguments = inputs_of(job)
        claim("data", (x for x in torch.utils._pytree.tree_leaves(self.arguments) if isinstance(x, Tensor)))
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.buckets = self._buckets() if job.strategy == "ddp" else []
        claim("buckets", self.buckets)
        if self.buckets and job.bucket_view:
            self._as_views(self.buckets[0])
        with told(job.name):
            self.optimizer = job.optimizer(self.trained)
        self.averages = [sharded.local(p).detach().float().clone() for p in self.trained] if job.ema else []
        claim("ema", self.averages)

    def _buckets(self) -> list[Tensor]:
        """All gradients', in fp32 as the weights; and which parameters were used, twice on the CPU."""
        flat = torch.empty(sum(p.numel() for p in self.trained), dtype=self.trained[0].dtype)
        used = [torch.empty(len(self.trained), dtype=torch.int32) for _ in range(1 + (not self.job.cuda))]
        return [flat, *used]

    def _as_views(self, flat: Tensor) -> None:
        """In the last micro batch each gradient is copied into its part of the buckets when it is there, and
        is that part then; those before are accumulated beside them (``no_sync``)."""
        for p, part in zip(self.trained, flat.split([p.numel() for p in self.trained]), strict=True):

            def put(p: Tensor, part: Tensor = part) -> None:
                if self.last:
                    p.grad = part.view(p.shape)

            p.register_post_accumulate_grad_hook(put)

    def step(self) -> None:
        job, recorder = self.job, self.recorder
        self.mark("start")
        count = min(job.accumulation, MOST)
        for number in range(count):
            self.last = number == count - 1
            micro_batch(job, self.network, self.arguments, recorder, lambda: self.mark("forward"))
            recorder.claim("gradients", (sharded.local(p.grad) for p in self.trained if p.grad is not None))
            self.mark("backward")
        with AnyNumber():
            self.optimizer.step()
        recorder.claim("optimizer", map(sharded.local, states_of(self.optimizer)))
        for average, p in zip(self.averages, self.trained, strict=False):
            average.lerp_(sharded.local(p).detach().float(), 1e-3)
        for p in self.trained:
            p.grad = None
        # FSDP2 pads shards of uneven length anew in the first forward.
        recorder.claim("parameters", map(sharded.local, self.network.parameters()))
        self.mark("step")

    def mark(self, phase: str) -> None:
        self.recorder.trace.events.append(Event(Kind.MARK, PHASES.index(phase)))


def _stream(trace: Trace, recorder: Recorder) -> Stream:
    """The events with a category each."""
    saved = trace.recomputed.union(*kept(trace))
    stream = Stream()
    numbers: dict[int, int] = {}
    for event in trace.events:
        if event.kind == Kind.ALLOCATE:
            category = recorder.categories.get(event.what)
            category = category or ("activations" if event.what in saved else "temporary")
            numbers[event.what] = stream.allocate(
                category, event.size, trace.layers[event.what], lane=recorder.lanes.get(event.what, 0)
            )
        elif event.kind == Kind.FREE:
            stream.free(numbers.pop(event.what))
        elif event.kind == Kind.MARK:
            stream.mark(PHASES[event.what])
    return stream
