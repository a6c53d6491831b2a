"""A step of the demo's network beside that of another checkout of this repository, the commit before, say.

    python benchmarks/step_before.py --before ../other [--zero 0 1] [--rounds 9] [--steps 4]

Both sides live in processes of their own and take turns, ``--steps`` steps each; the order turns every round.
Figures are medians over the rounds, and ratios medians of the rounds' ratios, before / now: above 1 this side
is faster. Beside wall and CPU seconds it counts, in one step, the operators dispatched in Engine.step (on a
GPU: launches, at least) and the reads of a tensor on the host, by place. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
READS = ("_local_scalar_dense", "is_nonzero", "nonzero")


def side(packed: Path, run: Path, zero: int) -> None:
    """One checkout: a line of JSON for every line that comes, which is a number of steps."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from diffcore.config import configure
    from diffcore.engine import process_group
    from diffcore.training.guards.stopping import StopFlag
    from diffcore.training.guards.watchdog import Watchdog
    from diffcore.training.run import Training

    class Seen(TorchDispatchMode):
        operators, in_engine = 0, False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operators += self.in_engine
            if func.overloadpacket.__name__ in READS:
                frame = sys._getframe(1)
                while f"{os.sep}torch{os.sep}" in frame.f_code.co_filename and frame.f_back:
                    frame = frame.f_back
                reads[f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"] += 1
            return func(*args, **(kwargs or {}))

    reads: Counter[str] = Counter()
    over = {
        "run": str(run),
        "data": {"path": str(packed)},
        "engine": {"zero": zero, "threads": 1, "gradient_clipping": 1.0},
        "train": {"steps": 1_000_000},
        "memory": {"trace": False},
    }
    config = configure.load(HERE / "configs" / "demo-adamw.yaml", over)
    world = process_group.start(config.run.parent, 1)
    watchdog = Watchdog(config.run, world.rank, config.train.steps, config.guards)
    with watchdog, Training(config, world, StopFlag(), watchdog) as training:
        for _ in range(3):
            training.learn()
        real, seen = training.engine.step, Seen()  # type: ignore[no-untyped-call]

        def counted(lr: float) -> Any:
            seen.in_engine = True
            outcome = real(lr)
            seen.in_engine = False
            return outcome

        training.engine.step = counted  # type: ignore[method-assign]
        with seen:
            training.learn()
        training.engine.step = real  # type: ignore[method-assign]
        print("#", json.dumps({"operators": seen.operators, "reads": reads}), flush=True)
        for line in sys.stdin:
            began, cpu = time.perf_counter(), time.process_time()
            for _ in range(int(line)):
                training.learn()
            taken = [time.perf_counter() - began, time.process_time() - cpu]
            print("#", json.dumps([seconds / int(line) for seconds in taken]), flush=True)
        os._exit(0)


def answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("# "):
            return json.loads(line[2:])
    raise SystemExit(f"a side ended with {process.wait()}")


def compared(sides: dict[str, Path], packed: Path, work: Path, zero: int, rounds: int, steps: int) -> Any:
    with contextlib.ExitStack() as open_:
        processes = {}
        for name, tree in sides.items():
            command = [
                sys.executable,
                __file__,
                "--side",
                str(packed),
                str(work / f"{name}{zero}"),
                str(zero),
            ]
            processes[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            open_.callback(processes[name].kill)
        found = {name: answer(process) for name, process in processes.items()}
        taken: dict[str, list[list[float]]] = {name: [] for name in sides}
        for turn in range(rounds):
            for name in list(sides)[:: 1 if turn % 2 else -1]:
                pipe = processes[name].stdin
                assert pipe is not None
                print(steps, file=pipe, flush=True)
                taken[name].append(answer(processes[name]))
    for name, rows in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        found[name] |= {"ms": round(wall * 1e3, 1), "cpu_ms": round(cpu * 1e3, 1)}
    pairs = list(zip(taken["before"], taken["now"], strict=True))
    ratio = {
        what: round(statistics.median(b[i] / n[i] for b, n in pairs), 3)
        for i, what in enumerate(["wall", "cpu"])
    }
    return found | {"ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path)
    parser.add_argument("--zero", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        side(Path(given.side[0]), Path(given.side[1]), int(given.side[2]))
        return
    if given.before is None:
        parser.error("--before needs the folder of the other checkout")
    sys.path.insert(0, str(HERE))
    from tests.support import small_set

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        packed = small_set.packed(work, size=64)
        sides = {"before": given.before.resolve(), "now": HERE}
        results = {
            f"zero {zero}": compared(sides, packed, work, zero, given.rounds, given.steps)
            for zero in given.zero
        }
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
