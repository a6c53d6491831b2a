"""The only file that knows DeepSpeed: processes, the wrapped network, and its states as plain tensors.

Checkpoints need the network's fp32 weights and Adam's moments by parameter name, whatever the ZeRO stage and
world size were; DeepSpeed keeps them in flat partitions. ``full_states`` and ``load_full_states`` translate.
"""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffcore.config import Config
from shards.cli import InputError

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
# Set from the config or computed by Batch.split: a second place could contradict the first.
OURS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)


@dataclass(frozen=True)
class World:
    """This process's place among the ranks of the run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0


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
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    return World(rank, size, local, device)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone (gloo raises a bare RuntimeError)."""
    return isinstance(error, torch.distributed.DistError) or "onnection" in str(error)


def stop() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def deepspeed_settings(config: Config, world_size: int) -> dict[str, Any]:
    """DeepSpeed's JSON with what the config decides filled in. InputError if the JSON decides it too."""
    path = config.engine.json_path
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("zero_optimization", {}), dict):
        raise InputError(f"{path}: expected an object with an object zero_optimization in it")
    for key in (*OURS, "bf16", "fp16", "optimizer", "scheduler"):
        if key in settings:
            raise InputError(f"{path}: {key} belongs in the YAML (batch, engine, optimizer), not here")
    stage = settings.get("zero_optimization", {}).get("stage")
    if stage != config.engine.zero:
        raise InputError(f"{path}: zero_optimization.stage is {stage}, engine.zero is {config.engine.zero}")
    micro, accumulation = config.batch.split(world_size)
    return settings | {
        "train_batch_size": config.batch.size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.engine.gradient_clipping,
        "bf16": {"enabled": config.engine.precision == "bf16"},
        "steps_per_print": 2**62,
    }


class Engine:
    """A network under DeepSpeed: forward, backward and step, and its states by parameter name."""

    def __init__(self, network: nn.Module, config: Config, world: World) -> None:
        import deepspeed

        self.world = world
        self.stage = config.engine.zero
        self.dtype = torch.bfloat16 if config.engine.precision == "bf16" else torch.float32
        self.micro, self.accumulation = config.batch.split(world.size)
        self.network = network.to(world.device)
        self.names = {parameter: name for name, parameter in self.network.named_parameters()}
        optimizer = build_optimizer(config, self.network)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self.network, optimizer=optimizer, config=deepspeed_settings(config, world.size)
        )
        if self.stage == 0 and world.size == 1:
            # DeepSpeed would flatten all gradients, reduce them over one rank and copy them back.
            self._engine.enable_backward_allreduce = False
        # ZeRO-0 in fp32 steps with the plain optimizer, for which DeepSpeed reports no gradient norm.
        self._unwrapped = self._optimizer is optimizer
        self._norm = torch.zeros(())

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro batch's mean loss."""
        self._engine.backward(loss)

    def step(self, lr: float) -> None:
        """End a micro batch; on the last one of a batch the optimizer steps with this learning rate."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if self._unwrapped and self._engine.is_gradient_accumulation_boundary():
            gradients = [p.grad for p in self.names if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(gradients)
        self._engine.step()

    def __call__(self, *inputs: Tensor) -> Tensor:
        x_BCHW, *rest = inputs
        output: Tensor = self._engine(x_BCHW.to(self.dtype), *rest)
        return output

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient over all ranks, before clipping."""
        return float(self._norm if self._unwrapped else self._engine.get_global_grad_norm())

    # --- states by parameter name ---------------------------------------------------------------------

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of every parameter, whole on every rank. A collective: all ranks iterate.

        The master weights where there are any. Valid until the next item.
        """
        if self.stage < 3 and self.dtype == torch.float32:  # whole on every rank already
            yield from ((name, parameter.detach()) for parameter, name in self.names.items())
        else:
            yield from self._full_masters()

    def _full_masters(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param

        for parameter, name in self.names.items():
            yield name, safe_get_full_fp32_param(parameter).reshape(self._shape(parameter))

    def master_shards(self) -> list[Tensor]:
        """What this rank holds of the fp32 weights: flat partitions under ZeRO-1 to 3, else all of them."""
        return [tensor.detach() for tensor in self._stepped]

    def whole(self, shards: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """``full_weights`` of weights that are laid out as ``master_shards``. A collective; exhaust it."""
        if self._unwrapped:
            of = dict(zip(self._stepped, shards, strict=True))
            yield from ((name, of[parameter]) for parameter, name in self.names.items())
        else:
            with self._masters_from(shards):
                yield from self._full_masters()

    def take(self, shards: Sequence[Tensor], weights: Mapping[str, Tensor]) -> None:
        """Fill ``shards``, laid out as ``master_shards``, from whole tensors by name."""
        if self._unwrapped:
            for name, shard in self.whole(shards):
                shard.copy_(weights[name])
            return
        with self._masters_from(shards), torch.no_grad():
            for parameter, name in self.names.items():
                self._set(parameter, None, weights[name])

    @contextmanager
    def _masters_from(self, shards: Sequence[Tensor]) -> Iterator[None]:
        """The masters and ``shards`` change places: whatever reads or writes masters meets ``shards``."""

        def exchange() -> None:
            for master, shard in zip(self.master_shards(), shards, strict=True):
                kept = master.clone()  # values, not storages: DeepSpeed holds views into its partitions
                master.copy_(shard)
                shard.copy_(kept)

        exchange()
        try:
            yield
        finally:
            exchange()

    def full_states(self) -> Iterator[tuple[str, Tensor]]:
        """("name.exp_avg", fp32 tensor) ... of Adam's moments, whole on every rank. A collective."""
        from deepspeed.utils import safe_get_full_optimizer_state

        for parameter, name in self.names.items():
            for moment in ADAM_MOMENTS:
                if self._unwrapped:
                    full = self._base_optimizer.state[parameter][moment]
                else:
                    full = safe_get_full_optimizer_state(parameter, moment)
                yield f"{name}.{moment}", full.reshape(self._shape(parameter))

    def load_full_states(
        self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], steps: int
    ) -> None:
        """Take up weights and Adam's moments by name after ``steps`` steps, at any stage and world size."""
        self._make_moments(steps)
        for parameter, name in self.names.items():
            self._set(parameter, None, weights[name])
            for moment in ADAM_MOMENTS:
                self._set(parameter, moment, moments[f"{name}.{moment}"])
        self._write_weights(weights.items())

    def _set(self, parameter: nn.Parameter, moment: str | None, value: Tensor) -> None:
        """Set this rank's share of a parameter's fp32 master (None) or of one of Adam's moments."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        value = value.to(self.world.device)
        if self.stage == 3:
            # DeepSpeed's "full" setters fail where a parameter does not divide among the ranks: it is padded.
            share = parameter.ds_tensor.numel()
            padded = nn.functional.pad(value.flatten(), (0, share * self.world.size - value.numel()))
            local = padded[self.world.rank * share : (self.world.rank + 1) * share]
            if moment is None:
                safe_set_local_fp32_param(parameter, local)
            else:
                safe_set_local_optimizer_state(parameter, local, moment)
        elif self._unwrapped:
            if moment is not None:
                self._base_optimizer.state[parameter][moment].copy_(value)
        elif moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _make_moments(self, steps: int) -> None:
        """Adam makes its moments at the first step; make them now, so that they can be filled."""
        for stepped in self._stepped:
            state = self._base_optimizer.state[stepped]
            state["step"] = torch.tensor(float(steps), device=stepped.device)  # where fused Adam wants it
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

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, whole."""
        return sum(self.size_of(parameter) for parameter in self.names)

    def size_of(self, parameter: nn.Parameter) -> int:
        """Elements of a parameter, whole (under ZeRO-3 the module's own tensor is empty)."""
        return self._shape(parameter).numel()

    def _write_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Set the compute weights (not the masters) on all ranks. A collective under ZeRO-3."""
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
        with self._gathered(), torch.no_grad():
            own = {name: parameter.detach().clone() for parameter, name in self.names.items()}
        self._write_weights(weights)
        try:
            yield
        finally:
            self._write_weights(own.items())

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
            "buckets": _tensors(getattr(z, "ipg_buckets", None)),
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


def build_optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW as the config says, in PyTorch's fused form (one kernel a group)."""
    c = config.optimizer
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    return kinds[c.kind](
        network.parameters(), lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay, fused=True
    )


def gather_objects(value: Any, world: World) -> list[Any]:
    """``value`` of every rank, in rank order, on every rank. A collective."""
    gathered: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def mean_over_ranks(value: Tensor, world: World) -> Tensor:
    """Mean of a small tensor over the ranks. A collective."""
    value = value.detach().clone()
    torch.distributed.all_reduce(value)
    return value / world.size


def barrier() -> None:
    torch.distributed.barrier()
