"""``diffcore.memory.plan``: a memory plan of any ``nn.Module``, on one rank, before anything is trained."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from diffbase.cli import InputError
from diffbase.formats import json_file
from diffcore.memory.calibration import ASSUMED, Calibration
from diffcore.memory.modules import inputs as examples
from diffcore.memory.modules import libraries, loop, optimizers, zero
from diffcore.memory.modules.building import Chance
from diffcore.memory.modules.job import Inputs, Job
from diffcore.memory.planning.plan import Plan, account


def plan(
    module: Callable[[], nn.Module] | str | Path,
    inputs: Any = None,
    *,
    loss: Callable[..., Tensor] | None = None,
    optimizer: str | Callable[[Any], Any] = "adamw",
    strategy: str = "plain",
    precision: str = "fp32",
    checkpointing: bool | Callable[[nn.Module], Any] = False,
    micro: int | None = None,
    accumulation: int = 1,
    world: int = 1,
    rank: int = 0,
    offload: str = "none",
    ema: bool = False,
    reshard_after_forward: bool | None = None,
    blocks: Callable[[nn.Module], list[nn.Module]] | None = None,
    mp_policy: Any = None,
    gradient_as_bucket_view: bool = False,
    deepspeed: Mapping[str, Any] | str | Path | None = None,
    device: str = "cuda",
    outside: Calibration = ASSUMED,
    **sizes: int,
) -> Plan:
    """Predict what training ``module`` takes on rank ``rank`` of ``world``, in bytes.

    ``module``: a function without arguments that makes the network (a class, ``lambda: Net(width=512)``),
    ``"package.module:function"``, or a folder with the config.json of a network of diffusers or transformers.
    It is run on fake tensors: no weights, no data, no GPU.

    ``inputs``: arguments of the forward call. A tensor, a tuple of positional ones or a dict of named ones,
    of which only shapes and dtypes count; tensors as text, ``"int64[B,1024]"`` with B for ``micro``; or a
    function of the micro batch that gives any of these. None: what networks of diffusers and transformers
    usually take, with ``sizes`` (``length``, ``side``, ...) of it.

    ``loss``: of what forward returns, or of that and the arguments (None: its ``loss``, where the network
    computes one, else the mean of squares of its first output). ``optimizer``: a class or function of the
    parameters, or a name of ``optimizers.OPTIMIZERS``.

    ``strategy``: ``plain``, ``ddp``, ``fsdp2`` (torch's ``fully_shard`` of each of ``blocks`` and the whole)
    or ``zero0`` to ``zero3`` (DeepSpeed, with the settings of its JSON ``deepspeed``). ``precision``:
    ``fp32``; ``bf16`` or ``fp16``, by torch.autocast, by FSDP2's mixed precision, or in DeepSpeed's weights;
    ``pure-bf16``, weights and states too. ``checkpointing``: True as the library switches it on, or a
    function of the network. ``micro`` is the samples of a forward call (by default one), ``accumulation``
    how many calls make a step. ``ema``: an fp32 average of the weights.

    ``device`` ``"cpu"`` is training over gloo. InputError with where and why for what cannot be planned.
    """
    job = job_of(
        module,
        inputs,
        sizes,
        loss=loss_of(loss),
        optimizer=optimizer_of(optimizer),
        strategy=strategy,
        precision=precision,
        checkpointing=checkpointing,
        micro=micro,
        accumulation=accumulation,
        world=world,
        rank=rank,
        offload=offload,
        ema=ema,
        reshard=reshard_after_forward,
        blocks=blocks,
        policy=mp_policy,
        bucket_view=gradient_as_bucket_view,
        deepspeed=settings(deepspeed),
        cuda=_cuda(device),
    )
    return plan_of(job, outside)


def job_of(
    module: Callable[[], nn.Module] | str | Path,
    inputs: Any,
    sizes: Mapping[str, int],
    micro: int | None = None,
    **settings: Any,
) -> Job:
    """What ``plan`` is asked for, checked. InputError as there."""
    known = libraries.find(module) if isinstance(module, str | Path) else None
    factory = known.factory if known else libraries.factory_of(module)
    if inputs is None:
        if known is None:
            raise InputError("inputs: a network of one's own has no usual ones; give them")
        inputs = known.batch(sizes)
    elif sizes:
        raise InputError(f"{', '.join(sorted(sizes))}: only of a library's usual inputs; inputs are given")
    batch, given = examples.batch_of(inputs)
    if given is not None and micro not in (None, given):
        raise InputError(f"micro {micro}: the inputs that are given are of {given} samples")
    name = known.name if known else name_of(module)
    return Job(
        factory=factory, batch=batch, micro=given or 1 if micro is None else micro, name=name, **settings
    )


def optimizer_of(given: str | Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A name, ``module:class`` or the class itself. InputError for what makes none."""
    if isinstance(given, str):
        found = libraries.named(given, "optimizer") if ":" in given else optimizers.named(given)
        return cast("Callable[[Any], Any]", found)
    if not callable(given):
        raise InputError(f"optimizer: give the class {type(given).__name__}, not one of some parameters")
    return given


def plan_of(job: Job, outside: Calibration = ASSUMED) -> Plan:
    """The plan of a job."""
    device = "cuda" if job.cuda else "cpu"
    record = loop.record if job.stage is None else zero.record
    tried = []
    for value in (1.0, 0.0):
        chance = Chance(value)
        with _undisturbed():
            recorded = record(replace(job, chance=chance))
        tried.append((recorded, *account(recorded.stream, device)))
        if not chance.seen:
            break
    recorded, moments, ended, timeline = max(tried, key=lambda one: max(m.allocated for m in one[1]))
    return Plan(
        job.rank,
        job.world,
        job.micro,
        job.accumulation,
        job.stage or 0,
        job.precision,
        "full" if job.checkpointing else "none",
        job.offload,
        recorded.parameters,
        moments,
        ended.bytes["gradients"],
        recorded.layers,
        timeline,
        outside,
        device,
        _notes(recorded, len(tried) > 1),
        strategy=job.strategy,
        stream=recorded.stream,
    )


def _notes(recorded: loop.Recorded, by_chance: bool) -> tuple[str, ...]:
    found = []
    if by_chance:
        found.append(
            "chance decides in this network: with every number drawn 0, or every one 1, this takes more"
        )
    if recorded.recurrent:
        kinds = ", ".join(recorded.recurrent)
        found.append(f"what fused {kinds} layers keep for backward is not planned: it can be half of them")
    return tuple(found)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The garbage collector would free tensors at other moments each time."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def loss_of(own: Callable[..., Tensor] | None) -> Callable[[Any, Inputs], Tensor]:
    """A function of output and arguments."""
    if own is None:
        return usual_loss
    import inspect

    try:
        count = len([p for p in inspect.signature(own).parameters.values() if p.default is p.empty])
    except (TypeError, ValueError):
        count = 1
    if count < 2:
        return lambda output, _: own(output)
    return lambda output, arguments: own(output, arguments[1] or arguments[0])


def usual_loss(output: Any, _: Inputs) -> Tensor:
    """The network's own loss, where it has one, else the mean of squares of its first output."""
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    values = output.values() if isinstance(output, Mapping) else tree_leaves(output)
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad:
            return value.float().square().mean()
    raise InputError(
        f"loss: forward gives {type(output).__name__!r:.80} with no tensor to learn by; give one"
    )


def name_of(module: Any) -> str:
    """What a line calls it."""
    return str(getattr(module, "__qualname__", None) or (module if isinstance(module, str) else "network"))


def _cuda(device: str) -> bool:
    if device not in ("cuda", "cpu"):
        raise InputError(f"device {device!r:.60}: allowed are cuda, cpu")
    return device == "cuda"


def settings(given: Mapping[str, Any] | str | Path | None) -> Mapping[str, Any]:
    """DeepSpeed's JSON, from where it is. InputError for what is none."""
    if given is None:
        return {}
    tree = given if isinstance(given, Mapping) else json_file.read(Path(given), "no such file (deepspeed)")
    if not isinstance(tree, Mapping) or not isinstance(tree.get("zero_optimization", {}), Mapping):
        raise InputError("deepspeed: expected an object with an object zero_optimization in it")
    return tree
