"""Everything that is measured on a GPU, in one go: the programs beside this one, one after another.

    python benchmarks/gpu.py [--out docs/gpu] [--only NAME ...] [--seconds 3600] [--rehearse]

A folder OUT gets what each program printed (NAME.json, NAME.log), and OUT.md a page with the device, the
versions, and each program's command, time, exit code and figures. A program that fails or runs over its
limit does not stop the others; the same command runs those again that did not end well. ``--rehearse`` runs
them small on a CPU: it shows that the programs work, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
WHERE = """
import json, torch, deepspeed
cuda = torch.cuda.is_available()
print(json.dumps({
    "device": torch.cuda.get_device_name() if cuda else "CPU", "torch": torch.__version__,
    "cuda": torch.version.cuda, "deepspeed": deepspeed.__version__}))
"""


@dataclass(frozen=True)
class Program:
    name: str
    what: str
    command: str
    rehearsal: str | None
    """What is added to the command on a CPU; None: it has nothing to do there."""
    limit: int
    """Seconds after which it is ended."""


PROGRAMS = (
    Program(
        "step",
        "a training step: numbers, speed, waits",
        "gpu_step.py",
        "--config {folder}/small.yaml --batch 4 --size 16 --steps 2 --rounds 2 --networks",
        420,
    ),
    Program(
        "numerics", "every ZeRO stage and precision beside a plain loop", "numerics.py --ranks 1", "", 300
    ),
    Program(
        "resume", "a run in two sittings beside the run in one", "gpu_resume.py", "--steps 4 --zero 1", 300
    ),
    Program(
        "resume-channels-last",
        "the same with engine.channels_last",
        "gpu_resume.py --zero 1 --channels-last",
        "--steps 4",
        200,
    ),
    Program("scratch", "what cuDNN takes inside a convolution", "gpu_scratch.py", None, 120),
    Program(
        "ddpm",
        "a training step beside the stock model",
        "train_step.py --model ddpm",
        "--precision bf16 --no-compile --batch 2 --width 16 --size 32 --steps 1 --rounds 2",
        420,
    ),
    Program(
        "diffusers",
        "a training step beside accelerate",
        "train_step.py --model diffusers",
        "--precision bf16 --no-compile --batch 2 --width 32 --size 32 --steps 1 --rounds 2",
        420,
    ),
    Program(
        "engine",
        "the engine beside a plain loop",
        "engine_step.py --batch 128 --steps 10 --zero 0 1 2 3",
        "--config {folder}/small.yaml --batch 4 --size 16 --steps 2 --rounds 2",
        240,
    ),
    Program(
        "memory",
        "planned against measured memory, closed against NVML",
        "gpu_memory.py --out {folder}/memory",
        "--rehearse",
        600,
    ),
    Program(
        "networks",
        "what networks of other libraries take",
        "gpu_networks.py --out {folder}/networks-cells.json",
        "--rehearse --only gpt2",
        420,
    ),
    Program(
        "quality",
        "ten minutes of avatars",
        "avatar_quality.py --minutes 4 --work {folder}/quality --out {folder}/avatar-quality",
        "--rehearse",
        900,
    ),
)


def run(program: Program, out: Path, rehearse: bool, limit: float) -> dict[str, Any]:
    """Run a program; what became of it. Its whole process group is gone afterwards, ``limit`` seconds on."""
    words = f"{program.command} {program.rehearsal if rehearse else ''}".format(folder=out).split()
    command, env = [sys.executable, str(REPOSITORY / "benchmarks" / words[0]), *words[1:]], dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [env.get("PYTHONPATH")])])
    began = time.monotonic()
    with (out / f"{program.name}.json").open("w") as said, (out / f"{program.name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=said, stderr=log, env=env, start_new_session=True)
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {
        "command": " ".join(["python", f"benchmarks/{words[0]}", *words[1:]]),
        "code": code,
        "seconds": round(time.monotonic() - began, 1),
        "rehearsal": rehearse,
    }


def page(where: dict[str, Any], done: dict[str, Any], out: Path) -> str:
    """The results in Markdown."""
    versions = ", ".join(f"{name} {value}" for name, value in where.items() if name != "device" and value)
    lines = ["# Figures from a GPU", "", f"{where['device']}; {versions}; `python benchmarks/gpu.py`.", ""]
    if any(entry["rehearsal"] for entry in done.values()):
        lines += ["**A rehearsal on small settings: its figures mean nothing.**", ""]
    for program in PROGRAMS:
        if (entry := done.get(program.name)) is None:
            continue
        end = "over its time" if entry["code"] is None else f"exit code {entry['code']}"
        lines += [
            f"## {program.what.capitalize()}",
            "",
            f"`{entry['command']}`: {entry['seconds']} s, {end}.",
            "",
        ]
        said = (out / f"{program.name}.json").read_text().strip()
        lines += ["```json", said, "```", ""] if said else []
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "gpu")
    parser.add_argument("--only", nargs="+", choices=[program.name for program in PROGRAMS])
    parser.add_argument("--seconds", type=float, default=3600.0, help="that all of them may take")
    parser.add_argument("--rehearse", action="store_true", help="small, on a CPU")
    a = parser.parse_args(argv)
    end = time.monotonic() + a.seconds
    out = a.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if a.rehearse:
        sys.path[:0] = [str(REPOSITORY)]
        from tests.support.numerics import CONFIG

        (out / "small.yaml").write_text(CONFIG)
    where = json.loads(
        subprocess.run([sys.executable, "-c", WHERE], capture_output=True, check=True).stdout.splitlines()[-1]
    )
    where["python"] = platform.python_version()
    ledger = out / "done.json"
    done: dict[str, Any] = json.loads(ledger.read_text()) if ledger.exists() else {}
    for program in PROGRAMS:
        if (a.only and program.name not in a.only) or done.get(program.name, {}).get("code") == 0:
            continue
        if a.rehearse and program.rehearsal is None:
            continue
        if (left := end - time.monotonic()) <= 0:
            print(f"{program.name}: left out, no time", flush=True)
            continue
        done[program.name] = run(program, out, a.rehearse, min(program.limit, left))
        print(f"{program.name}: {done[program.name]}", flush=True)
        ledger.write_text(json.dumps(done, indent=1) + "\n")
        out.with_suffix(".md").write_text(page(where, done, out))
    return int(any(entry["code"] != 0 for entry in done.values()))


if __name__ == "__main__":
    sys.exit(main())
