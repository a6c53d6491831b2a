"""DeepSpeed's ZeRO around any network: a micro batch traced on fake tensors, placed inside DeepSpeed's step.

What DeepSpeed's JSON does not say has DeepSpeed's own defaults (deepspeed 0.19, runtime/zero/config.py),
which are made for large networks: a bucket of 500 million elements is allocated, however small the network.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from diffbase.cli import InputError
from diffcore.config.buckets import filled
from diffcore.memory.modules.building import counted_rng_states, inputs_of, network_of, told
from diffcore.memory.modules.job import Job
from diffcore.memory.modules.loop import Recorded, functions, micro_batch, recurrent
from diffcore.memory.modules.optimizers import work_of
from diffcore.memory.planning.activations import zero3_linear
from diffcore.memory.planning.plan import layers
from diffcore.memory.planning.recording import (
    Parameter,
    Recorder,
    Trace,
    name_layers,
    note_gradients,
    note_modules,
)
from diffcore.memory.planning.replay import replay
from diffcore.memory.planning.states import Sharing, Work

BUCKET = 500_000_000


def record(job: Job) -> Recorded:
    """Two steps under DeepSpeed. InputError where the network cannot be traced."""
    trace, kinds = traced(job)
    sharing = sharing_of(job, trace)
    work = _work(job, trace, sharing)
    stream = replay(trace, sharing, optimizer=work)
    return Recorded(stream, sum(p.numel for p in trace.parameters), layers(trace), kinds)


def traced(job: Job) -> tuple[Trace, tuple[str, ...]]:
    """One micro batch, with where its modules begin and end; and names of its recurrent layers."""
    dtype = job.weights or torch.float32
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        network = network_of(job)
        with told(job.name):
            arguments = inputs_of(job)
        given = [x for x in tree_leaves(arguments) if isinstance(x, Tensor)]
        named = sorted(network.named_parameters(), key=lambda item: not item[1].requires_grad)
        result = Trace(
            job.micro,
            dtype,
            [Parameter(name, tuple(p.shape), frozen=not p.requires_grad) for name, p in named],
            sum(b.untyped_storage().nbytes() for b in network.buffers()),
            sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in given}.values()),
            cuda=job.cuda,
        )
        recorder = Recorder(result, job.cuda)
        recorder.ignore([p for _, p in named] + list(network.buffers()) + given)
        name_layers(network, recorder)
        note_modules(network, recorder, {p: i for i, (_, p) in enumerate(named)})
        note_gradients([p for _, p in named if p.requires_grad], recorder)
        stack.enter_context(counted_rng_states(recorded=not job.cuda))
        stack.enter_context(zero3_linear(job.stage == 3))
        stack.enter_context(functions(job))
        stack.enter_context(recorder)
        with told(job.name):
            micro_batch(job, network, arguments, recorder)
        recorder.done = True
    return result, recurrent(network)


def sharing_of(job: Job, trace: Trace) -> Sharing:
    """DeepSpeed's settings. InputError where its JSON is of another stage, or makes no sense."""
    numels = [p.numel for p in trace.parameters if not p.frozen]
    zero: dict[str, Any] = dict(job.deepspeed.get("zero_optimization") or {})
    stage = job.stage
    assert stage is not None
    if zero.get("stage", stage) != stage:
        raise InputError(
            f"deepspeed: zero_optimization.stage is {zero['stage']}, the strategy is {job.strategy}"
        )
    zero = filled(zero, numels)

    def size(key: str, default: float) -> int:
        value = zero.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise InputError(
                f"deepspeed: zero_optimization.{key} {value!r:.60}: expected a number of elements"
            )
        return int(value)

    overlap = zero.get("overlap_comm")
    return Sharing(
        stage=stage,
        world=job.world,
        rank=job.rank,
        itemsize=trace.itemsize,
        accumulation=job.accumulation,
        offload=job.offload != "none",
        bucket=size("reduce_bucket_size", BUCKET),
        overlap=stage == 3 if overlap is None else bool(overlap),
        contiguous=bool(zero.get("contiguous_gradients", True)) or job.offload != "none",
        prefetch=size("stage3_prefetch_bucket_size", 5e7),
        persist=size("stage3_param_persistence_threshold", 1e5),
        live=size("stage3_max_live_parameters", 1e9),
        reuse=size("stage3_max_reuse_distance", 1e9),
        cpu=not job.cuda and job.gloo,
        averages=int(job.ema),
        offload_parameters=job.offload == "parameters",
    )


def _work(job: Job, trace: Trace, sharing: Sharing) -> Work:
    """Of the optimizer, on each parameter (stage 0) or on this rank's flat part of all of them."""
    trained = [p for p in trace.parameters if not p.frozen]
    shapes = (
        [p.shape for p in trained]
        if sharing.stage == 0
        else [(sharing.partition([p.numel for p in trained]),)]
    )
    return work_of(job.optimizer, shapes, job.cuda and not sharing.offload, job.name)
