"""The only file that knows DeepSpeed: starting it, the wrapped network, and its states as plain tensors.

Checkpoints and the EMA need the network's fp32 weights and Adam's moments by parameter name, whatever the
ZeRO stage and world size were; DeepSpeed keeps them in flat partitions. ``Engine.parts`` translates.
"""

from __future__ import annotations

import importlib
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffbase import malloc as heap
from diffbase.cli import InputError
from diffcore import collectives
from diffcore.config import Config
from diffcore.deepspeed_json import settings
from diffcore.optimizer import build_optimizer
from diffcore.world import World, sum_over_ranks

LINEAR = torch.nn.functional.linear
ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's dynamic loss scale remembers."""
BUCKETS = (
    "ipg_buckets",
    "param_buffer_of_bit16_for_cpu_offload_groups",
    "temp_grad_buffer_for_cpu_offload",
    "temp_grad_buffer_for_gpu_offload",
    "accumulated_grads_in_cpu",
)
"""Where DeepSpeed's optimizers keep what is on its way: between ranks, to and from an offloaded optimizer."""
GATHER_ELEMENTS = 16 << 20
"""Elements that are gathered in one collective: 64 MiB."""


def start(threads: int | None = None) -> World:
    """Join the run's process group: one process alone, or as the launcher's environment says."""
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for train.deterministic, before CUDA starts
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls collectives by names that torch is renaming; a user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed

    # DeepSpeed would compile its own shared-memory collectives here, with a C++ compiler that may be missing
    # and half a minute that a small run does not have; gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if torch.cuda.is_available():
        # Slurm may show a task one device only: then it is number 0, whatever the local rank.
        shown = torch.cuda.device_count()
        if shown > 1 and local >= shown:
            raise InputError(f"local rank {local} has no GPU: this node shows {shown} (one process a GPU)")
        device = torch.device("cuda", local if shown > 1 else 0)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        # torchrun says LOCAL_WORLD_SIZE, DeepSpeed's launcher LOCAL_SIZE.
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(threads or max(1, cores // min(per_node, cores)))
        heap.keep_freed()
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    return World(rank, size, local, device)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _forget_earlier_engines() -> None:
    """Take back what DeepSpeed changes for the whole process and leaves changed for engines made later.

    ZeRO-3 puts its own linear layer, which rounds twice, in the place of torch's; and once an engine used
    autocast, those that do not are given its loss scale.
    """
    torch.nn.functional.linear = LINEAR
    autocast = importlib.import_module("deepspeed.runtime.torch_autocast")
    autocast.TORCH_AUTOCAST_INITIALIZED, autocast.TORCH_AUTOCAST_DTYPE = False, None


def stop() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Place:
    """Where elements ``start`` .. ``start + count`` of a flattened parameter are on this rank.

    ``offset`` elements into the ``shard``-th tensor of ``Engine.masters`` and of all that is laid out so.
    """

    name: str
    start: int
    count: int
    shard: int
    offset: int


Part = tuple[str, int, Tensor]
"""(parameter, start, fp32 tensor [n]): elements start .. start + n of a flattened parameter."""
Read = Callable[[str, str, int, int], Tensor]
"""(kind, parameter, start, count) -> fp32 [count], CPU; kind: "weights", "ema" or a moment of Adam's."""


class Engine:
    """A network under DeepSpeed: forward, backward and step, and its states by parameter name."""

    def __init__(self, network: nn.Module, config: Config, world: World) -> None:
        import deepspeed

        self.world = world
        self.stage, self.compiled = config.engine.zero, config.engine.compile
        self.micro, self.accumulation = config.batch.split(world.size)
        if config.engine.precision == "fp16" and world.device.type == "cpu" and self.stage:
            raise InputError(
                f"engine.precision fp16 with ZeRO-{self.stage} needs a GPU (DeepSpeed refuses it on a CPU); "
                f"allowed here: fp32, bf16"
            )
        # Under ZeRO-0 the weights stay in fp32 and autocast computes in less; the other stages keep masters.
        self.dtype = DTYPES[config.engine.precision] if self.stage else torch.float32
        self.network = network.to(world.device)
        self.names = {parameter: name for name, parameter in self.network.named_parameters()}
        optimizer = build_optimizer(config, self.network)
        _forget_earlier_engines()
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self.network, optimizer=optimizer, config=settings(config, world.size)
        )
        if self.stage == 0 and world.size == 1:
            # DeepSpeed would flatten all gradients, reduce them over one rank and copy them back.
            self._engine.enable_backward_allreduce = False
        # ZeRO-0 steps with the plain optimizer, for which DeepSpeed reports no gradient norm.
        self._unwrapped = self._optimizer is optimizer
        self._norm = torch.zeros(())

    def watch_communication(self, watch: Callable[[], AbstractContextManager[None]]) -> None:
        """Have ``watch()`` around every moment in which a step waits for DeepSpeed's collectives."""
        from deepspeed.comm import comm

        collectives.watch(comm.cdb, watch)

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro batch's mean loss."""
        self._engine.backward(loss)

    @property
    def at_boundary(self) -> bool:
        """Whether the micro batch in hand is the last one of its batch, after which the optimizer steps."""
        return bool(self._engine.is_gradient_accumulation_boundary())

    def step(self, lr: float) -> bool:
        """End a micro batch; on the last one of a batch the optimizer steps with this learning rate.

        Returns whether the weights may have changed: False where the gradient of any rank was not finite and
        the step was left out (on every rank alike).
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if self._unwrapped and self.at_boundary:
            gradients = [p.grad for p in self.names if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(gradients) / self.loss_scale
            self._optimizer.overflow = not bool(self._norm.isfinite())
        self._engine.step()
        return not getattr(self._optimizer, "overflow", False)

    def __call__(self, *inputs: Tensor) -> Tensor:
        x_BCHW, *rest = inputs
        output: Tensor = self._engine(x_BCHW.to(self.dtype), *rest)
        return output

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient over all ranks, before clipping; inf if it was not finite."""
        return float(self._norm if self._unwrapped else self._engine.get_global_grad_norm())

    # --- fp16's loss scale ------------------------------------------------------------------------------

    @property
    def loss_scale(self) -> float:
        """Factor on the loss that keeps fp16's gradients from underflowing; 1 without fp16."""
        if self._unwrapped:
            scaler = self._engine.torch_autocast_z0_gradscaler
            return float(scaler.get_scale()) if scaler is not None else 1.0
        return float(self._optimizer.loss_scale)

    def scaler_state(self) -> dict[str, float]:
        """What the dynamic loss scale needs to go on; empty without fp16."""
        if self._unwrapped:
            scaler = self._engine.torch_autocast_z0_gradscaler
            return dict(scaler.state_dict()) if scaler is not None else {}
        scaler = getattr(self._optimizer, "loss_scaler", None)
        return {name: getattr(scaler, name) for name in SCALER if hasattr(scaler, name)}

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Take up ``scaler_state``; that of another precision or stage is left aside."""
        if self.scaler_state().keys() != state.keys():
            return
        if not self._unwrapped:
            for name, value in state.items():
                setattr(self._optimizer.loss_scaler, name, value)
        elif state:
            self._engine.torch_autocast_z0_gradscaler.load_state_dict(dict(state))

    # --- states by parameter name ---------------------------------------------------------------------

    def masters(self) -> list[Tensor]:
        """What the optimizer steps on: this rank's flat fp32 partitions, under ZeRO-0 the parameters."""
        return [tensor.detach() for tensor in self._stepped]

    def moments(self) -> dict[str, list[Tensor]]:
        """Adam's moments by name, laid out like ``masters``; empty before the first step."""
        states = [self._base_optimizer.state.get(tensor, {}) for tensor in self._stepped]
        return {m: [state[m] for state in states] for m in ADAM_MOMENTS if all(m in s for s in states)}

    def _places(self) -> Iterator[Place]:
        """Where this rank holds which elements, in the parameters' order."""
        for i, (parameter, name) in enumerate(self.names.items()):
            size = self.size_of(parameter)
            if self._unwrapped:
                yield Place(name, 0, size, i, 0)
            elif self.stage == 3:  # equal parts, padded at the end
                shard, offset, _ = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
                start, count = _share(size, self.world)
                yield Place(name, start, count, shard, offset)
            elif (mapped := parameter._hp_mapping) is not None:  # what falls into this rank's partition
                of, at = mapped.lp_fragment_address, mapped.hp_fragment_address
                yield Place(name, of.start, of.numel, mapped.param_group_index, at.start)

    def is_finite(self) -> bool:
        """Whether every weight of every rank is a finite number. A collective."""
        bad = torch.zeros((), device=self.world.device)
        for _, _, part in self.parts(self.masters()):  # without the padding, which may hold anything
            bad += (~part.isfinite()).sum().to(bad.device)
        return not sum_over_ranks(bad).item()

    def held(self, shards: Sequence[Tensor]) -> Iterator[Part]:
        """Every element that this rank holds in tensors laid out like ``masters``: views."""
        for p in self._places():
            yield p.name, p.start, shards[p.shard].detach().view(-1).narrow(0, p.offset, p.count)

    def parts(self, shards: Sequence[Tensor]) -> Iterator[Part]:
        """What this rank answers for of tensors laid out like ``masters``: views.

        Over all ranks each element comes once. Not a collective; valid until the next step.
        """
        for name, start, part in self.held(shards):
            if self._unwrapped:  # all ranks hold the same
                start, count = _share(part.numel(), self.world)
                part = part.narrow(0, start, count)
            if part.numel():
                yield name, start, part

    def whole(self, shards: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of every parameter, whole on every rank, of tensors laid out like ``masters``.

        A collective: all ranks iterate to the end. A tensor is valid until the next one.
        """
        shapes = self.shapes()
        if self._unwrapped:
            yield from ((name, held.view(shapes[name])) for name, _, held in self.held(shards))
            return
        mine = {name: (start, part) for name, start, part in self.parts(shards)}
        for bucket in _buckets({name: prod(shape) for name, shape in shapes.items()}, GATHER_ELEMENTS):
            flat = torch.zeros(sum(bucket.values()), device=self.world.device)
            tensors = dict(zip(bucket, flat.split(list(bucket.values())), strict=True))
            for name in bucket.keys() & mine.keys():
                start, part = mine[name]
                tensors[name][start : start + part.numel()].copy_(part)
            torch.distributed.all_reduce(flat)  # a sum of disjoint parts: exact
            yield from ((name, tensor.view(shapes[name])) for name, tensor in tensors.items())

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """``whole`` of the fp32 weights."""
        return self.whole(self.masters())

    def fill(self, shards: Sequence[Tensor], kind: str, read: Read) -> None:
        """Read tensors laid out like ``masters`` from a checkpoint."""
        for name, start, held in self.held(shards):
            held.copy_(read(kind, name, start, held.numel()))

    def load(self, read: Read, updates: int) -> None:
        """Take up fp32 weights and Adam's moments after ``updates`` optimizer steps, whatever stage and world
        size they are from. A collective."""
        self._make_moments(updates)
        self.fill(self.masters(), "weights", read)
        for moment, shards in self.moments().items() if updates else ():  # a checkpoint before any has none
            self.fill(shards, moment, read)
        self.write_weights(self.full_weights())

    def start_from(self, weights: Mapping[str, Tensor], source: Path) -> None:
        """Begin with these weights, whole and by name. InputError, with ``source``, if they do not fit."""
        shapes = self.shapes()
        for name in sorted(shapes.keys() | weights.keys()):
            there = list(weights[name].shape) if name in weights else "missing"
            if there != shapes.get(name, "not in this model"):
                wanted = shapes.get(name, "not in this model")
                raise InputError(f"init_from: {source}: {name} is {there}, this model has {wanted}")
        read: Read = lambda _, name, start, count: weights[name].reshape(-1)[start : start + count]  # noqa: E731
        self.fill(self.masters(), "weights", read)
        self.write_weights(self.full_weights())

    def _make_moments(self, updates: int) -> None:
        """Adam makes its moments at the first step; make them now, so that they can be filled."""
        for stepped in self._stepped:
            state = self._base_optimizer.state[stepped]
            state["step"] = torch.tensor(float(updates), device=stepped.device)  # where fused Adam wants it
            for moment in ADAM_MOMENTS:
                state[moment] = torch.zeros_like(stepped)
        link = getattr(self._optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            link()

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    @property
    def _stepped(self) -> list[Tensor]:
        """What the optimizer steps on: this rank's flat fp32 partitions, or the parameters themselves."""
        if self.stage == 3:  # in no param group: DeepSpeed lends them to the optimizer one at a time
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return [tensor for group in self._base_optimizer.param_groups for tensor in group["params"]]

    def _shape(self, parameter: nn.Parameter) -> torch.Size:
        return getattr(parameter, "ds_shape", parameter.shape)

    def shapes(self) -> dict[str, list[int]]:
        """Shape of every parameter, whole, by name."""
        return {name: list(self._shape(parameter)) for parameter, name in self.names.items()}

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, whole."""
        return sum(self.size_of(parameter) for parameter in self.names)

    def size_of(self, parameter: nn.Parameter) -> int:
        """Elements of a parameter, whole (under ZeRO-3 the module's own tensor is empty)."""
        return self._shape(parameter).numel()

    def write_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Set the compute weights (not the masters) on all ranks, from whole tensors. A collective."""
        parameters = {name: parameter for parameter, name in self.names.items()}
        with self._gathered(), torch.no_grad():
            for name, value in weights:
                parameters[name].copy_(value)

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Every parameter whole on every rank; under ZeRO-3 changes are partitioned again at the end."""
        if self.stage < 3:
            yield
            return
        import deepspeed

        # With a modifier rank its values are broadcast at the end: every rank writes the same ones.
        with deepspeed.zero.GatheredParameters(list(self.names), modifier_rank=0):
            yield

    @contextmanager
    def swapped(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
        """Compute with other weights (the EMA's, say) for a while. A collective: all ranks iterate."""
        # Under ZeRO-0 the compute weights are the masters: keep them aside.
        own = [(name, p.detach().clone()) for p, name in self.names.items()] if self._unwrapped else None
        self.write_weights(weights)
        try:
            yield
        finally:
            self.write_weights(own if own is not None else self.full_weights())

    # --- memory ------------------------------------------------------------------------------------------

    def memory(self) -> dict[str, list[Tensor]]:
        """The tensors that hold this rank's states, as they are now, by category.

        A storage may be in several (a gradient lies in a bucket while it is reduced): the first one counts.
        """
        z, base = self._optimizer, self._base_optimizer
        masters = [tensor for tensor in self._stepped if tensor not in self.names]
        gradients = [p.grad for p in [*self.names, *masters] if p.grad is not None]
        return {
            "parameters": [getattr(p, "ds_tensor", p) for p in self.names] + list(self.names),
            "buckets": [t for name in BUCKETS for t in _tensors(getattr(z, name, None))],
            "masters": masters,
            "optimizer": [t for state in base.state.values() for t in _tensors(state)],
            "gradients": [
                *gradients,
                *_tensors(getattr(z, "averaged_gradients", None)),
                *_tensors(getattr(z, "grad_partitions_flat_buffer", None)),
            ],
        }

    def bucket_bytes(self) -> int:
        """Size of one of DeepSpeed's communication buckets; 0 without any."""
        return int(getattr(self._optimizer, "reduce_bucket_size", 0)) * self.dtype.itemsize


def _tensors(held: Any) -> list[Tensor]:
    """Tensors inside DeepSpeed's buckets: a tensor, a container of them or an object that holds some."""
    if torch.is_tensor(held):
        return [held]
    if isinstance(held, Mapping):
        return [t for value in held.values() for t in _tensors(value)]
    if isinstance(held, list | tuple):
        return [t for value in held for t in _tensors(value)]
    buffer = getattr(held, "buffer", None)
    return _tensors(buffer) if buffer is not None else []


def _share(size: int, world: World) -> tuple[int, int]:
    """(start, count) of this rank's equal part of ``size`` elements; the last parts may be short or empty."""
    share = -(-size // world.size)
    start = min(world.rank * share, size)
    return start, min(share, size - start)


def _buckets(sizes: Mapping[str, int], most: int) -> Iterator[dict[str, int]]:
    """Runs of neighbours with at most ``most`` elements, or one that has more alone."""
    bucket: dict[str, int] = {}
    for name, size in sizes.items():
        if bucket and sum(bucket.values()) + size > most:
            yield bucket
            bucket = {}
        bucket[name] = size
    if bucket:
        yield bucket
