"""What a step has to do, counted on tensors without data."""

from __future__ import annotations

from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.memory.advise import Planner
from diffcore.memory.fitting.timing import Work
from diffcore.memory.planning.recording import Kind
from diffcore.models.flops import optimizer_flops, training_flops


def work_of(planner: Planner, config: Config) -> Work:
    """Of ``config``'s network on images of ``planner.data.size`` pixels.

    Kernels are told by the tensors that forward and backward make: one each.
    """
    schema, size = planner.data.schema, planner.data.size
    zero = 1 if config.engine.deepspeed is None else config.engine.zero
    plain = configure.replace(config, "engine", {"checkpointing": "none", "zero": zero, "offload": "none"})
    traced = planner.trace(plain, 2)
    return Work(
        flops=training_flops(config.model, schema, size),
        optimizer=optimizer_flops(config.model, config.optimizer, schema, size),
        parameters=sum(parameter.numel for parameter in traced.parameters),
        tensors=len(traced.parameters),
        kernels=sum(event.kind == Kind.ALLOCATE for event in traced.events),
    )
