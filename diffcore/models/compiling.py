"""torch.compile as a setting."""

from __future__ import annotations

import os
import sysconfig
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from diffbase.cli import InputError
from diffbase.trust import own_folder

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_network(network: nn.Module) -> None:
    """Compile ``network``'s forward in place, at its first call; parameter names stay (no "_orig_mod.").

    Only with gradients: training has one batch size, while sampling and validation have others, each of which
    would be compiled anew. InputError where the generated C++ could not be compiled, or could be changed by
    others.
    """
    own_cache()  # before torch's imports choose a folder
    if problem := missing():
        raise InputError(f"engine.compile: {problem}; install it or set engine.compile to false")
    plain, compiled = network.forward, torch.compile(network.forward, dynamic=False)

    def forward(*inputs: Tensor) -> Tensor:
        output: Tensor = compiled(*inputs) if torch.is_grad_enabled() else plain(*inputs)
        return output

    network.forward = forward


def own_cache() -> Path:
    """The folder in which torch keeps what it compiled, and loads it from: node-local and ours alone.

    InputError for one that others could change. torch's own choice, /tmp/torchinductor_NAME, belongs to
    whoever made it first; $TORCHINDUCTOR_CACHE_DIR names another one.
    """
    folder = Path(tempfile.gettempdir()) / f"diffcore-inductor-{os.geteuid()}"
    folder = Path(os.environ.setdefault(CACHE, str(folder)))
    try:
        return own_folder(folder, code=True)
    except InputError as error:
        raise InputError(f"engine.compile: {error}; ${CACHE} names another folder") from error


def missing() -> str | None:
    """What torch.compile lacks on this machine, or None."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # a second of imports
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler (g++, clang++, or what $CXX names)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.exists() else f"{header} of Python's development files is missing"
