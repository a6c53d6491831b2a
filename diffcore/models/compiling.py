"""torch.compile as a setting."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn

from diffbase.cli import InputError
from diffbase.machine import compile_cache


def compile_network(network: nn.Module) -> None:
    """Compile ``network``'s forward in place, at its first call; parameter names stay (no "_orig_mod.").

    Only with gradients: training has one batch size, while sampling and validation have others, each of which
    would be compiled anew. InputError where the generated C++ could not be compiled, or could be changed by
    others.
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
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.exists() else f"{header} of Python's development files is missing"
