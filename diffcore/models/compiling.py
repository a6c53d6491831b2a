"""torch.compile as a setting."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _triton

from diffbase.cli import InputError
from diffbase.machine import compile_cache
from diffcore.config.configure import replace
from diffcore.config.tree import Config
from diffcore.engine.ranks import World, gather


def settled(config: Config, world: World) -> tuple[Config, list[str]]:
    """``config`` with ``engine.compile`` on or off, and a line that says what auto became. With auto a
    collective.

    auto is on where every rank has a GPU and can compile for it, and the ZeRO stage lets it: ranks that
    compile beside some that do not would wait for those.
    """
    if config.engine.compile != "auto":
        return config, []
    reasons = gather(_against(config.engine.zero, world.device), world)
    rank, why = next(((rank, why) for rank, why in enumerate(reasons) if why), (0, None))
    chosen = "off" if why else "on"
    said = f"engine.compile auto is {chosen}" + (f" (rank {rank}: {why})" if why else "")
    return replace(config, "engine", {"compile": chosen}), [said]


def _against(zero: int, device: torch.device) -> str | None:
    """Why auto does not compile on this rank, or None."""
    if device.type != "cuda":
        return "there is no GPU"
    if zero == 3:
        return "ZeRO-3 cannot be compiled"
    try:
        compile_cache.check()
    except InputError as error:
        return str(error).removeprefix("engine.compile: ")
    return missing()


def compile_network(network: nn.Module) -> None:
    """Compile ``network``'s forward in place, at its first call; parameter names stay (no "_orig_mod.").

    Only with gradients: training has one shape (one a stage, each compiled when it comes), while sampling and
    validation have others, each of which would be compiled anew. InputError where the generated C++ could not
    be compiled, or could be changed by others.
    """
    compile_cache.check()
    if problem := missing():
        raise InputError(f"engine.compile: {problem}; install it or set engine.compile to false")
    plain, compiled = network.forward, torch.compile(network.forward, dynamic=False)

    def forward(*inputs: Tensor) -> Tensor:
        output: Tensor = compiled(*inputs) if torch.is_grad_enabled() else plain(*inputs)
        return output

    network.forward = forward


def missing() -> str | None:
    """What torch.compile lacks on this machine, or None."""
    compile_cache.choose()
    from torch._inductor.cpp_builder import get_cpp_compiler  # a second of imports
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler (g++, clang++, or what $CXX names)"
    if torch.cuda.is_available():
        if not _triton.has_triton():
            return "Triton is not there, or not for this GPU"
        # Triton compiles a launcher in C for every kernel.
        if not any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"])):
            return "there is no C compiler (gcc, clang, or what $CC names)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.exists() else f"{header} of Python's development files is missing"
