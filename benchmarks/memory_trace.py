"""python benchmarks/memory_trace.py [--config configs/demo-adamw.yaml] [--pairs 9]

What ``memory.trace: true`` costs a run: the step that is followed beside an ordinary one, in interleaved
pairs on the same engine, and the report at the end with its plans. Nothing else of a run is touched. Prints
JSON; ``ratio`` is the whole cost over the config's ``train.steps``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="demo-adamw.yaml", help="a file of configs/")
    parser.add_argument("--batch", type=int, help="samples a step, if not the config's")
    parser.add_argument("--pairs", type=int, default=9)
    given = parser.parse_args()
    print(json.dumps(overhead(given.config, given.batch, given.pairs), indent=1))


def overhead(name: str, batch: int | None = None, pairs: int = 9) -> dict[str, Any]:
    """Seconds of a step and of what tracing adds; medians."""
    from diffcore.config.configure import load, replace
    from diffcore.engine import process_group
    from diffcore.memory import report
    from diffcore.memory.measure.rehearse import steps_of

    config = load(REPOSITORY / "configs" / name)
    if batch:
        config = replace(config, "batch", {"size": batch, "micro": None})
    world = process_group.start(config.run, config.engine.threads)
    step, tracer = steps_of(config, world)

    def seconds(number: int, followed: bool) -> float:
        began = time.perf_counter()
        step(number, followed)
        return time.perf_counter() - began

    for number in range(3):
        step(number, False)
    timed = [(seconds(i, False), seconds(i + 1, True)) for i in range(3, 3 + 2 * pairs, 2)]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report.save(Path(folder), report.measured(config, [tracer.result]))
    reporting = time.perf_counter() - began
    process_group.stop()
    plain = statistics.median(ordinary for ordinary, _ in timed)
    extra = statistics.median(followed - ordinary for ordinary, followed in timed)
    return {
        "config": name,
        "batch": config.batch.size,
        "device": world.device.type,
        "steps": config.train.steps,
        "step_seconds": plain,
        "followed_extra_seconds": extra,
        "report_seconds": reporting,
        "ratio": (extra + reporting) / (config.train.steps * plain),
    }


if __name__ == "__main__":
    main()
