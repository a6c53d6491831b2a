"""Following a step without an engine: what a compiled network does afterwards; errors that mean no memory."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffcore.memory.measure.trace import Tracer, _Recorder
from diffcore.memory.oom import is_out_of_memory


def recorder(network: nn.Module, compiled: bool = False, bucket: int = 0) -> _Recorder:
    engine: Any = SimpleNamespace(
        network=network,
        compiled=compiled,
        memory=lambda: {"parameters": list(network.parameters())},
        bucket_bytes=lambda: bucket,
        world=SimpleNamespace(device=torch.device("cpu")),
    )
    ema: Any = SimpleNamespace(memory=[])
    return _Recorder(engine, ema)


def test_a_compiled_network_stays_compiled() -> None:
    """Dynamo gives up code for good that it meets under an ordinary dispatch mode."""
    ran = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            nonlocal ran
            ran += 1
            return graph(*values)

        return call

    network = nn.Linear(4, 4)
    network.forward = torch.compile(network.forward, backend=backend, dynamic=False)  # type: ignore[method-assign]
    counts = []
    for followed in (False, True, False):
        following = recorder(network)
        if followed:
            following.start()
        network(torch.ones(2, 4)).sum().backward()
        if followed:
            following.mark("forward")
            following.stop()
        counts.append(ran)
    assert counts == [1, 2, 3]
    torch.compiler.reset()


def test_what_forward_leaves_is_activations() -> None:
    network, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.ones(2, 4)
    following = recorder(network)
    following.start()
    out = network(x)
    following.mark("forward")
    following.stop()
    stream = following.stream
    sizes = {number: size for number, size in stream.events if size}
    kept = [(stream.layer[n], sizes[n]) for n, c in enumerate(stream.category) if c == "activations"]
    assert kept == [("1", out.nbytes)]  # the linear layer's output is gone: ReLU keeps its own


def test_buckets_are_known_by_their_size_in_backward_alone() -> None:
    """What forward makes may be as large by chance."""
    x = torch.ones(2, 4)
    following = recorder(nn.Identity(), bucket=x.nbytes)
    following.start()
    held = [x + 1]
    following.mark("forward")
    held.append(x + 1)
    following.mark("backward")
    held.append(x + 1)
    following.stop()
    categories = [following.stream.category[following.known[y.untyped_storage()._cdata]] for y in held]
    assert categories == ["activations", "buckets", "temporary"]


def test_a_micro_batch_that_is_made_in_the_step_is_data() -> None:
    """Of the second one too, when backward has left something that is not."""
    network = nn.Linear(4, 8)
    tracer = Tracer(recorder(network).engine, SimpleNamespace(memory=[]), 0, 1)  # type: ignore[arg-type]
    tracer.begin(0)
    held: list[Tensor] = []
    for _ in range(2):
        x = torch.ones(2, 4) * 2
        tracer.after("data")
        out = network(x)
        tracer.after("forward")
        held += [x, out, out + 1]
        tracer.after("backward")
        tracer.after("optimizer")
    assert tracer._recorder is not None
    found = tracer._recorder
    tracer.close()
    wanted = ["data", "activations", "activations", "data", "activations", "temporary"]
    by_storage = {number: found.stream.category[number] for number in found.addresses}
    assert [by_storage[found.known[x.untyped_storage()._cdata]] for x in held] == wanted


@pytest.mark.parametrize(("compiled", "category"), [(False, "data"), (True, "activations")])
def test_what_comes_unknown_out_of_a_compiled_network_was_made_there(compiled: bool, category: str) -> None:
    x, network = torch.ones(2, 4), nn.ReLU()
    following = recorder(network, compiled)
    following.start()
    network(x)
    following.mark("forward")
    following.stop()
    assert following.stream.category[0] == category


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("NCCL error: unhandled cuda error, Failed to CUDA calloc async 608 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (MemoryError(), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_errors_that_mean_no_memory(error: BaseException, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one
