"""What one forward and backward allocates, from fake tensors: no data, no GPU, the training's own code.

The network and the loss of ``train.py`` run under FakeTensorMode, where a tensor has a shape, a dtype and a
lifetime but no memory. A dispatch mode notes when each storage comes and goes, and hooks note which layer
made it and when each gradient is complete. The device is a fake ``cpu``: fake ``cuda`` needs a CUDA build,
and ``meta`` takes other code paths, which allocate other tensors.

Under ZeRO-0 bf16 and fp16 are torch.autocast's. The CPU and CUDA have different lists of what autocast runs
in fp32; CUDA's is put on top of the CPU's here, for the operators that networks of this project use.

Bytes are the tensors' own; what a device's allocator makes of them is allocator.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from diffcore import models
from diffcore.config.diffusion import FIRST_DRAWS
from diffcore.config.tree import Config
from diffcore.diffusion.loss import WEIGHTS, denoising_loss
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine import staging
from diffcore.engine.orthogonal.matrices import matrices
from diffcore.engine.ranks import torch_dtype
from diffcore.memory.planning.recording import (
    Event,
    Kind,
    Parameter,
    Recorder,
    Trace,
    name_layers,
    note_gradients,
    note_modules,
)
from shards.schema import Attribute

CUDA_IN_FP32 = ("group_norm", "layer_norm", "softmax")
"""Functions of torch.nn.functional that autocast_mode.h runs in fp32 on CUDA; the CPU in what it is given."""


@contextmanager
def replaced(others: Mapping[str, Any]) -> Iterator[None]:
    """Other functions in torch.nn.functional."""
    own = {name: getattr(F, name) for name in others}
    try:
        for name, function in others.items():
            setattr(F, name, function)
        yield
    finally:
        for name, function in own.items():
            setattr(F, name, function)


def zero3_linear(there: bool) -> AbstractContextManager[None]:
    """DeepSpeed's linear, which it puts in torch's place under ZeRO-3."""
    linear: Callable[..., Tensor] = _Zero3Linear.apply
    return replaced({"linear": lambda x, weight, bias=None: linear(x, weight, bias)} if there else {})


def _on_cuda(there: bool) -> AbstractContextManager[None]:
    """What autocast runs in fp32 on a GPU alone."""
    return replaced({name: _in_fp32(getattr(F, name)) for name in CUDA_IN_FP32} if there else {})


def _in_fp32(function: Any) -> Any:
    """``function`` as autocast runs it on CUDA."""

    def call(x: Tensor, *args: Any, **named: Any) -> Tensor:
        result: Tensor = function(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **named)
        return result

    return call


class _Zero3Linear(torch.autograd.Function):
    """What DeepSpeed puts in the place of linear under ZeRO-3 (runtime/zero/linear.py)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        if x.dim() == 2 and bias is not None:
            return torch.addmm(bias, x, weight.t())
        output = x.matmul(weight.t())
        if bias is not None:
            output += bias
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_x = gradient.matmul(weight) if ctx.needs_input_grad[0] else None
        of_weight = rows.t().matmul(x.reshape(-1, x.shape[-1])) if ctx.needs_input_grad[1] else None
        of_bias = None
        if bias is not None and ctx.needs_input_grad[2]:
            of_bias = gradient.sum(list(range(gradient.dim() - 1)))
        return of_x, of_weight, of_bias


def trace(
    config: Config,
    schema: list[Attribute],
    size: int,
    micro: int,
    modules: bool = False,
    cuda: bool = True,
    packed: int | None = None,
) -> Trace:
    """Record one micro batch of ``micro`` samples of ``size`` pixels under ``config``.

    ``modules`` also notes where modules begin and end, in forward and backward, as ZeRO-3 sees them;
    ``cuda`` is whether autocast and Muon are to be CUDA's, and samples wait on the device, as packed: of
    ``packed`` pixels (None: ``size``).
    """
    arithmetic = config.engine.arithmetic
    staged = cuda and config.diffusion.draws != FIRST_DRAWS
    lower, dtype = torch_dtype(arithmetic.lower), torch_dtype(arithmetic.weights)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = _cast(models.build(config.model, schema, size), dtype)
        network = models.prepare(network, config.engine.model_copy(update={"compile": "off"}))
        schedule = NoiseSchedule.of(config.diffusion)
        weights_T = WEIGHTS[config.diffusion.loss_weight](schedule)
        images, t_B, labels, keep_B = models.example_batch(micro, schema, size)
        draws = Draws(t_B, torch.empty_like(images), keep_B)
        inputs = [images, labels, draws.eps_BCHW, draws.t_B, draws.keep_B]
        # To draw takes 4.5 times the noise for a moment, before the network's activations, which are more.
        waiting = staging.buffers(micro, packed or size, len(schema), "cpu") if staged else []
        if config.diffusion.timestep_density != "uniform":
            waiting = [*waiting, torch.empty(config.diffusion.timesteps, dtype=torch.int64)]  # timesteps.ends
        constants = [weights_T, *(t for t in vars(schedule).values() if isinstance(t, Tensor))]
        named = list(network.named_parameters())
        wide = matrices(network)
        result = Trace(
            micro,
            dtype,
            [Parameter(name, tuple(p.shape), wide.get(name)) for name, p in named],
            sum(b.untyped_storage().nbytes() for b in [*network.buffers(), *constants]),
            sum(t.untyped_storage().nbytes() for t in inputs + waiting),
            cuda=cuda,
        )
        recorder = Recorder(result, cuda)
        recorder.ignore([p for _, p in named] + list(network.buffers()) + inputs + constants)
        name_layers(network, recorder)
        if modules:
            note_modules(network, recorder, {p: i for i, (_, p) in enumerate(named)})
        note_gradients([p for _, p in named], recorder)

        def forward(x_BCHW: Tensor, *rest: Tensor) -> Tensor:
            with torch.autocast("cpu", lower, enabled=arithmetic.autocast):
                output: Tensor = network(x_BCHW.to(dtype), *rest)
                return output

        with recorder, zero3_linear(config.engine.zero == 3), _on_cuda(arithmetic.autocast and cuda):
            loss = denoising_loss(forward, schedule, weights_T, images, labels, draws).mean()
            result.events.append(Event(Kind.TURN, 0))
            recorder.recomputing = True
            loss.backward()
            del loss
        recorder.done = True
    return result


def _cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Module.to cannot swap fake tensors' data: new parameters take their place. Buffers follow too."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to(dtype))
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)
    return network
