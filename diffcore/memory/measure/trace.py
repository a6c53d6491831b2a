"""Measuring one training step: which tensors hold how many bytes, by category, through the whole step.

One step of a run (the third, or the last of a shorter one) is traced; the others pay nothing. A dispatch mode
notes every storage that comes and goes, as the planner does with fake tensors; states are known by the
storages of the engine's own tensors, what forward leaves for backward is activations, buckets are known by
their size. On a GPU the allocator's own counts and NVML's stand beside the categories.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.memory.measure.counted import Counts, unfollowed
from diffcore.memory.measure.usage import usage
from diffcore.memory.planning.lifetimes import lifetimes
from diffcore.memory.planning.plan import account, moment_json
from diffcore.memory.planning.stream import Stream

WARM = 2
"""Steps before the traced one: Adam has its moments then, and ZeRO-3 its order of modules."""


PHASES = {"forward": "forward", "backward": "backward", "ema": "step"}
"""Parts of a step after which the memory is looked at, and what a report calls them."""


class Tracer:
    """Follows one step: ``begin``, ``after`` each part, and ``result`` once it is over."""

    def __init__(self, engine: Engine, ema: Ema, start: int, steps: int, active: bool = True) -> None:
        self.engine, self.ema = engine, ema
        self.step = min(start + WARM, steps - 1) if active else -1
        self.result: dict[str, Any] | None = None
        """This rank's entry of anatomy.json, when the traced step is over."""
        self._recorder: _Recorder | None = None

    def begin(self, step: int) -> None:
        """Start following if ``step`` is the one to be traced; called before every step."""
        if step != self.step:
            return
        self._recorder = _Recorder(self.engine, self.ema)
        self._recorder.start()

    def after(self, part: str) -> None:
        """A part of the step (``engine.step``) has ended: forward and backward of a micro batch, or all."""
        phase = PHASES.get(part)
        if self._recorder is not None and part == "data":
            self._recorder.micro_batch()
        elif self._recorder is not None:
            self._recorder.since = len(self._recorder.stream.category)
        if self._recorder is None or phase is None:
            return
        self._recorder.mark(phase)
        if phase == "step":
            recorder = self._recorder
            self.close()
            self.result = _entry(self.engine, recorder)

    def close(self) -> None:
        """Stop following, also where an error ended the step."""
        if self._recorder is not None:
            self._recorder.stop()
            self._recorder = None


class _Recorder(TorchDispatchMode):
    def __init__(self, engine: Engine, ema: Ema) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.engine = engine
        self.stream = Stream()
        self.known: dict[int, int] = {}
        """Storage object -> its number in the stream."""
        self.forward = True
        """Whether this is a forward pass; else it is a backward pass or the optimizer's step."""
        self.counts = Counts(engine.world.device)
        self.addresses: dict[int, int] = {}
        """Number of a living storage -> where its bytes are."""
        self.buckets = engine.bucket_bytes()
        self.names = {module: name or "network" for name, module in engine.network.named_modules()}
        self.stack: list[str] = []
        self.handles: list[Any] = []
        self.done = False
        self.since = 0
        """Number of the first storage after the part of the step that ended last."""
        for category, tensors in (engine.memory() | {"ema": ema.memory}).items():
            for tensor in tensors:
                self._there(tensor, category, host=True)
        for buffer in engine.network.buffers():
            self._there(buffer, "data")
        self.since = len(self.stream.category)
        self.stream.mark("start")

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Dynamo gives up compiled code for good where it meets another mode on the stack."""
        return True

    def start(self) -> None:
        self.handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        self.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        self.done = True
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        for handle in self.handles:
            handle.remove()

    def micro_batch(self) -> None:
        """What is left of the storages since the last part is the micro batch, made on the device."""
        for number in self.addresses:
            if number >= self.since and self.stream.category[number] == "temporary":
                self.stream.category[number] = "data"

    def mark(self, phase: str) -> None:
        self.forward = phase == "backward"  # of the next micro batch, if there is one
        if phase == "forward":
            for number in self.addresses:
                if self.stream.category[number] == "temporary":
                    self.stream.category[number] = "activations"
        for category, tensors in self.engine.memory().items():
            for tensor in tensors:
                number = self.known.get(tensor.untyped_storage()._cdata, -1)
                if number >= 0 and self.stream.category[number] in ("temporary", "activations"):
                    self.stream.category[number] = category
        self.stream.mark(phase)
        self.counts.mark(phase)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What comes in unknown was there before the step: the micro batch, the noise schedule. Or else a
        # compiled network made it, whose own allocations are not dispatched.
        made = self.engine.compiled and (self.stack or not self.forward)
        for leaf in tree_leaves((args, kwargs)):
            self._there(leaf, "temporary" if made else "data")
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            self._there(leaf, "temporary")
        return result

    def _there(self, leaf: Any, category: str, host: bool = False) -> None:
        """``host``: also if it is not on the device, as an offloaded optimizer's states."""
        if not isinstance(leaf, Tensor):
            return
        there = leaf.device.type == self.engine.world.device.type
        if there or (host and leaf.device.type == "cpu"):
            self._see(leaf, category, host=not there)

    def _see(self, tensor: Tensor, category: str, host: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or not size:
            return
        if category == "temporary" and size == self.buckets and not self.forward:
            category = "buckets"
        number = self.stream.allocate(category, size, self.stack[-1] if self.stack else "", host)
        self.known[key] = number
        self.addresses[number] = storage.data_ptr()
        weakref.finalize(storage, self._gone, key, number)

    def _gone(self, key: int, number: int) -> None:
        if self.done:
            return
        if self.known.get(key) == number:
            del self.known[key]
        self.addresses.pop(number, None)
        self.stream.free(number)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.stack.append(self.names.get(module, self.stack[-1] if self.stack else ""))

    def _leave(self, *_: Any) -> None:
        self.stack.pop()


def storage_bytes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address -> bytes of the distinct storages behind ``tensors``; views count once."""
    storages = (t.untyped_storage() for t in tensors if t.device.type != "meta")
    return {s.data_ptr(): s.nbytes() for s in storages if s.nbytes()}


def _entry(engine: Engine, recorder: _Recorder) -> dict[str, Any]:
    device, stream = engine.world.device, recorder.stream
    moments, _, timeline = account(stream, "cpu")
    entries = [moment_json(moment) for moment in moments]
    peak = max(entries, key=lambda entry: int(entry["allocated"]))
    total, notes = usage(device), []
    for entry in entries:
        if counted := recorder.counts.moments.get(entry["name"]):
            entry["counted"] = asdict(counted)
            entry["reserved"] = counted.reserved
    if recorder.counts.moments:
        size, count = unfollowed(torch.cuda.memory_snapshot(), recorder.addresses.values())
        notes.append(
            f"after the step {count} of the allocator's blocks, {size / 2**20:,.1f} MiB, hold no tensor that "
            "was followed: workspaces of libraries, mostly"
        )
    rows = [
        {"name": name, "bytes": size, "source": "storages"} for name, size in peak["bytes"].items() if size
    ]
    rows += total.rows(peak["allocated"], entries[-1]["allocated"], recorder.counts.moments.get(peak["name"]))
    told = lifetimes(stream) if engine.world.main else None  # of one rank: it goes through the network
    return {
        "rank": engine.world.rank,
        "device": total.device,
        **({"capacity": asdict(total.room)} if total.room else {}),
        **({"lifetimes": told} if told else {}),
        "parameters": engine.parameters,
        "micro_batch": engine.micro,
        "moments": entries,
        "layers": _layers(stream),
        "timeline": [{"phase": phase, "bytes": sizes} for phase, sizes in timeline],
        "closure": rows,
        "total": {"bytes": total.used, "source": total.source},
        "notes": [*notes, *total.notes],
    }


def _layers(stream: Stream) -> list[dict[str, Any]]:
    """What each module leaves for backward, of the last micro batch; largest first."""
    end = max((end for phase, end in stream.marks if phase == "forward"), default=0)
    alive: dict[int, int] = {}
    for number, size in stream.events[:end]:
        if size:
            alive[number] = size
        else:
            del alive[number]
    layers: dict[str, int] = defaultdict(int)
    for number, size in alive.items():
        if stream.category[number] == "activations":
            layers[stream.layer[number] or "(loss)"] += size
    ranked = sorted(layers.items(), key=lambda item: -item[1])
    return [{"name": name, "bytes": size} for name, size in ranked]
