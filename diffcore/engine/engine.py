"""A network under DeepSpeed: forward, backward, step, loss scale, and where its tensors are."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffbase.cli import InputError
from diffbase.machine import compile_cache
from diffcore.config.buckets import bucket_of
from diffcore.config.deepspeed_json import settings, sums_simply
from diffcore.config.tree import Config
from diffcore.engine import communication
from diffcore.engine.gradients import gradient_norm
from diffcore.engine.gradients.outcome import Outcome
from diffcore.engine.gradients.overlap import Overlap
from diffcore.engine.optimizers import build_optimizer
from diffcore.engine.orthogonal.matrices import matrices
from diffcore.engine.orthogonal.muon import Muon, units
from diffcore.engine.orthogonal.pieces import pieces
from diffcore.engine.partitions import NamedStates, Shard
from diffcore.engine.ranks import World, torch_dtype

LINEAR = torch.nn.functional.linear
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


def forget_earlier_engines() -> None:
    """Take back what DeepSpeed changes for the whole process and leaves changed for engines made later.

    ZeRO-3 puts its own linear layer, which rounds twice, in the place of torch's; and once an engine used
    autocast, those that do not are given its loss scale.
    """
    torch.nn.functional.linear = LINEAR
    autocast: Any = importlib.import_module("deepspeed.runtime.torch_autocast")
    autocast.TORCH_AUTOCAST_INITIALIZED, autocast.TORCH_AUTOCAST_DTYPE = False, None


def vouch_for(optimizer: type[torch.optim.Optimizer]) -> None:
    """Have DeepSpeed's ZeRO take this class without a warning that nobody tested it."""
    utils: Any = importlib.import_module("deepspeed.runtime.zero.utils")
    if optimizer not in utils.ZERO_SUPPORTED_OPTIMIZERS:
        utils.ZERO_SUPPORTED_OPTIMIZERS.append(optimizer)


def check_device(config: Config, world: World) -> None:
    """InputError where DeepSpeed does not compute in this precision on this device."""
    if world.device.type == "cpu" and not config.engine.arithmetic.on_cpu:
        raise InputError(
            f"engine.precision {config.engine.precision} with ZeRO-{config.engine.zero} needs a GPU "
            "(DeepSpeed refuses it on a CPU); allowed here: fp32, bf16"
        )


def checked(config: Config, world_size: int, numels: Sequence[int] | None = None) -> dict[str, Any]:
    """DeepSpeed's settings as it takes them itself, for parameters of ``numels`` elements.

    InputError with its words if it refuses the JSON.
    """
    compile_cache.choose()
    from deepspeed import DeepSpeedConfig

    tree = settings(config, world_size, numels)
    try:
        DeepSpeedConfig(copy.deepcopy(tree))
    except Exception as error:  # of a section of another type an AttributeError, KeyError, TypeError, ...
        raise InputError(f"{config.engine.json_path}: DeepSpeed refuses it: {error!s:.500}") from error
    return tree


class Engine(NamedStates):
    """A network under DeepSpeed: forward, backward and step, and its states by parameter name."""

    def __init__(self, network: nn.Module, config: Config, world: World) -> None:
        import deepspeed

        self.world = world
        self.stage, self.compiled = config.engine.zero, config.engine.compile == "on"
        self.micro, self.accumulation = config.batch.split(world.size)
        check_device(config, world)
        self.dtype = torch_dtype(config.engine.arithmetic.weights)
        self.network = network.to(world.device)
        self.names = {parameter: name for name, parameter in self.network.named_parameters()}
        optimizer = build_optimizer(config, self.network)
        self._muon = optimizer if isinstance(optimizer, Muon) else None
        vouch_for(Muon)
        numels = [self.size_of(parameter) for parameter in self.names]
        if not any(hasattr(parameter, "ds_id") for parameter in self.names):  # else construction.build did
            forget_earlier_engines()
        tree = checked(config, world.size, numels)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self.network, optimizer=optimizer, config=tree
        )
        self._overlap: Overlap | None = None
        if self.stage == 0 and (world.size == 1 or sums_simply(tree)):
            # DeepSpeed would flatten all gradients after backward, reduce them, over one rank too, and copy
            # them back.
            self._engine.enable_backward_allreduce = False
            if world.size > 1:
                capacity = bucket_of(tree, numels)
                self._overlap = Overlap(list(self.names), capacity, world.size)
        # ZeRO-0 steps with the plain optimizer, for which DeepSpeed reports no gradient norm.
        self._unwrapped = self._optimizer is optimizer
        self._norm = torch.zeros(())
        self._norms: list[Tensor] = []
        if self._unwrapped:
            self._most = torch.tensor(config.engine.gradient_clipping, device=world.device)
            self._engine.clip_fp32_gradients = self._clip
        elif self.stage < 3:
            gradient_norm.read_once(self._optimizer)
        if self._muon is not None:
            self._bind(self._muon)

    def _bind(self, muon: Muon) -> None:
        """Tell Muon where its matrices lie."""
        shapes, sizes = matrices(self.network), {name: self.size_of(p) for p, name in self.names.items()}
        where = pieces(sizes, self.stage, self.world.size, self._stepped[0].numel())
        muon.bind(units(self._stepped, self._places(), shapes, where, self.world, muon.ns_steps))

    def close(self) -> None:
        """Let go of the gradients' hooks, where another engine follows in this process: under ZeRO-1 and 2
        they hold all tensors in a circle that the garbage collector does not see."""
        self._engine.destroy()

    def watch_communication(self, watch: Callable[[], AbstractContextManager[None]]) -> None:
        """Have ``watch()`` around every moment in which a step waits for DeepSpeed's collectives."""
        from deepspeed.comm import comm

        communication.watch(comm.cdb, watch)

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro batch's mean loss. The last one of a batch averages over the ranks."""
        overlap = self._overlap if self.at_boundary else None
        if overlap is not None:
            overlap.begin()
        self._engine.backward(loss)
        if overlap is not None:
            overlap.finish()

    @property
    def at_boundary(self) -> bool:
        """Whether the micro batch in hand is the last one of its batch, after which the optimizer steps."""
        return bool(self._engine.is_gradient_accumulation_boundary())

    def step(self, lr: float) -> Outcome:
        """End a micro batch; on the last one of a batch the optimizer steps with this learning rate.

        Where the gradient of any rank is not finite the step is left out, on every rank alike. Under ZeRO-0
        the device decides that, and the host does not wait for it.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if not (self._unwrapped and self.at_boundary):
            self._engine.step()
            return Outcome(not getattr(self._optimizer, "overflow", False))
        self._norms = list(torch._foreach_norm(self._gradients(), 2.0))
        self._norm = torch.linalg.vector_norm(torch.stack(self._norms)) / self.loss_scale
        finite = self._norm.isfinite()
        if self._engine.torch_autocast_z0_gradscaler is not None:
            # fp16's loss scale is read on the host in any case, and its scaler has a found_inf of its own.
            self._optimizer.overflow = not bool(finite)
            self._engine.step()
            return Outcome(not self._optimizer.overflow)
        # Fused Adam leaves weights, moments and its count as they are where this is 1.
        self._optimizer.found_inf = (~finite).float()
        self._engine.step()
        self._optimizer.found_inf, self._norms = None, []
        return Outcome(finite)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.names if p.grad is not None]

    def _clip(self) -> None:
        """DeepSpeed's clipping under ZeRO-0, to the last bit, of the norms that are there and without its
        waits for constants."""
        from deepspeed import comm

        norm = torch.stack(self._norms).pow(2.0).sum().pow(0.5) / float(self.world.size)
        comm.all_reduce(norm)
        torch._foreach_mul_(self._gradients(), (self._most / (norm + 1e-6)).clamp(max=1.0))

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output; the first input, x_t, is cast to the weights' dtype."""
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
        """What the dynamic loss scale needs to go on; an empty dict without fp16."""
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

    # --- what the states by name need (partitions.py) ---

    def moments(self) -> Mapping[str, Sequence[Shard]]:
        """The optimizer's by name, laid out like ``masters``; empty before the first step. Muon has momentum
        of some parameters, and moments of the others."""
        return self._muon.moments() if self._muon is not None else super().moments()

    def _make_moments(self, updates: int) -> None:
        if self._muon is not None:
            self._muon.make_states(updates)
        else:
            super()._make_moments(updates)

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        wrapped = self._engine.optimizer
        optimizer: torch.optim.Optimizer = getattr(wrapped, "optimizer", wrapped)
        return optimizer

    @property
    def _stepped(self) -> list[Tensor]:
        if self.stage == 3:  # in no param group: DeepSpeed lends them to the optimizer one at a time
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return [tensor for group in self._base_optimizer.param_groups for tensor in group["params"]]

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        if self.stage < 3:
            yield
            return
        import deepspeed

        # With a modifier rank its values are broadcast at the end: every rank writes the same ones.
        with deepspeed.zero.GatheredParameters(list(self.names), modifier_rank=0):
            yield

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
