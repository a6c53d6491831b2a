"""FSDP2 on fake tensors: torch's own ``fully_shard`` over a process group that is none.

The collectives of torch's ``fake`` group end at once; what is allocated around them is allocated here too.
Storages that FSDP2 empties and fills again in place are seen by their ``resize_``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffbase.cli import InputError
from diffcore.memory.modules.job import PRECISIONS, Job
from diffcore.memory.planning.recording import Recorder


@contextlib.contextmanager
def fake_group(rank: int, world: int) -> Iterator[Any]:
    """A one-dimensional mesh of ``world`` ranks, of which this is ``rank``. InputError inside a group."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise InputError("a plan of FSDP2 needs a process of its own: here is a process group already")
    hook = sys.excepthook  # a group of torch's puts its rank before every traceback
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (world,))
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def shard(network: nn.Module, job: Job, mesh: Any) -> None:
    """``fully_shard`` each block, and then the whole."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = job.policy or MixedPrecisionPolicy()
    if job.policy is None and job.precision in ("bf16", "fp16"):
        policy = MixedPrecisionPolicy(param_dtype=PRECISIONS[job.precision], reduce_dtype=torch.float32)
    for block in (job.blocks or blocks)(network):
        if block is not network:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=job.reshard)
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=job.reshard)


def blocks(module: nn.Module) -> list[nn.Module]:
    """Members of the outermost ``nn.ModuleList``s, as libraries' own plans for FSDP have it."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in blocks(child)]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other as it is."""
    own = getattr(tensor, "_local_tensor", tensor)
    return own if isinstance(own, Tensor) else tensor


@contextlib.contextmanager
def resizing(recorder: Recorder) -> Iterator[None]:
    """Have the recorder see storages that are emptied and filled in place."""
    own = torch.UntypedStorage.resize_

    def resize(storage: Any, size: int) -> Any:
        before = storage.nbytes()
        result = own(storage, size)
        if storage.nbytes() != before:
            recorder.resized(storage, "parameters")
        return result

    torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = own  # type: ignore[method-assign]


@contextlib.contextmanager
def shapes_unseen(recorder: Recorder) -> Iterator[None]:
    """DTensor finds an operator's shapes by a run of its own on whole tensors, which take no memory."""
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    name = "_propagate_tensor_meta_non_cached"
    own: Any = getattr(ShardingPropagator, name)

    def call(*args: Any, **named: Any) -> Any:
        recorder.paused, before = True, recorder.paused
        try:
            return own(*args, **named)
        finally:
            recorder.paused = before

    setattr(ShardingPropagator, name, call)
    try:
        yield
    finally:
        setattr(ShardingPropagator, name, own)


@contextlib.contextmanager
def buckets(recorder: Recorder) -> Iterator[None]:
    """What FSDP2 allocates around its collectives is called so, and on which CUDA stream it is known."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group as group

    names = [name for name in ("foreach_all_gather", "foreach_reduce") if hasattr(group, name)]
    own = {name: getattr(group, name) for name in names}

    def calling(function: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            recorder.category, before = "buckets", recorder.category
            try:
                return function(*args, **named)
            finally:
                recorder.category = before

        return call

    lanes: dict[int, int] = {}
    """Stream -> its number; 0 is the one that computes."""
    streams: list[Any] = []  # kept, so that an id is of one stream alone
    enter = torch.cpu.stream

    @contextlib.contextmanager
    def on(stream: Any) -> Iterator[None]:
        streams.append(stream)
        default = stream is torch.cpu.current_stream()
        before = recorder.lane
        recorder.lane = 0 if default else lanes.setdefault(id(stream), len(lanes) + 1)
        try:
            yield
        finally:
            recorder.lane = before

    for name in names:
        setattr(group, name, calling(own[name]))
    torch.cpu.stream = on
    try:
        yield
    finally:
        torch.cpu.stream = enter
        for name in names:
            setattr(group, name, own[name])
