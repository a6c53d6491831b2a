"""What the engine needs beside torch: DeepSpeed, an optimizer on the CPU, a compiler. Compiles nothing."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator

from launch.doctor.finding import Finding, bad, ok, warn

SECONDS = 5.0
"""A compiler's time to read one header."""


def deepspeed() -> Iterator[Finding]:
    """DeepSpeed can be imported, and the optimizer of engine.offload steps."""
    from diffcore.engine import operators

    try:
        operators.offloaded_step()
    except RuntimeError as error:
        yield bad(
            "engine.offload", f"torch's fused AdamW does not step on the CPU: {error}", "engine.offload none"
        )
    else:
        yield ok("engine.offload", "torch's fused AdamW steps on the CPU; nothing has to be compiled")
    try:
        there = operators.compatible()
    except ImportError as error:
        yield bad(
            "DeepSpeed", f"cannot be imported: {error}", "install it anew: pip install --force-reinstall"
        )
        return
    names = [name for name, compatible in there.items() if compatible]
    yield ok(
        "DeepSpeed", f"could compile {', '.join(names) or 'no operator'} here; diffcore needs none of them"
    )


def compiler() -> Iterator[Finding]:
    """A C++ compiler and Python's headers, for engine.compile."""
    name, use = "compiler", "engine.compile needs one; all else works"
    command = shlex.split(os.environ.get("CXX") or "g++") or ["g++"]
    if not shutil.which(command[0]):
        yield warn(name, f"no {command[0]}; {use}", "install g++, or set CXX to a C++ compiler")
        return
    # Without Python's headers torch.compile fails as without a compiler.
    headers = sysconfig.get_paths()["include"]
    arguments = [*command, "-x", "c++", "-fsyntax-only", f"-I{headers}", "-"]
    done = subprocess.run(
        arguments, input="#include <Python.h>\n", capture_output=True, text=True, timeout=SECONDS
    )
    if done.returncode:
        said = next(
            (line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}"
        )
        yield warn(name, f"{command[0]}: {said}; {use}", "install Python's headers (python3-dev)")
    else:
        yield ok(name, f"{command[0]} and Python's headers, for engine.compile")
