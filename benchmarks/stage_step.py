"""python benchmarks/stage_step.py [--config configs/demo-adamw.yaml] [--sides 32] [--batch 12] [--rounds 9]

What a training step costs on smaller images (``train.stages``): one engine in one process takes a step at
each side and one at the full size in turns, micro batches made of packed pixels as a run makes them. The
first of each, whose kernels are chosen then, does not count. Prints JSON: medians of seconds and CPU seconds
a step, and the medians over the rounds of the ratio to the full size, beside the ratio of the FLOPs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from diffbase.files import REPOSITORY
from diffcore import models
from diffcore.config import configure
from diffcore.engine import construction, process_group
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.step import take_step
from diffcore.memory.planning.plan import Data
from diffcore.training.batches import Samples, made
from diffcore.training.objective import Objective, Work


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "demo-adamw.yaml")
    parser.add_argument("--sides", type=int, nargs="+", default=[32], help="edges of smaller images")
    parser.add_argument("--batch", type=int, default=12, help="samples a step, of this one process")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    print(json.dumps(measured(given.config, given.sides, given.batch, given.rounds), indent=1))


def measured(path: Path, sides: list[int], batch: int, rounds: int) -> dict[str, Any]:
    """Figures by side."""
    stages = [{"side": side, "until": k} for k, side in enumerate(sorted(sides), 1)]
    # A thread: several wait for each other in CPU seconds.
    sizes = {"batch": {"size": batch, "micro": None}, "engine": {"threads": 1}}
    config = configure.load(path, {"train": {"stages": stages, "steps": 10**6}, **sizes})
    data, world = Data.of(config), process_group.start(config.run, config.engine.threads)
    torch.manual_seed(config.seed)
    network = construction.build(lambda: models.build(config.model, data.schema, data.size), config, world)
    engine = Engine(models.prepare(network, config.engine), config, world)
    ema, objective = Ema(engine, config.ema), Objective(config, data.size, world.device)
    pixels = torch.randint(0, 256, (batch, data.size, data.size, 3), dtype=torch.uint8)
    labels, numbers = torch.zeros(batch, len(data.schema), dtype=torch.int64), itertools.count()
    samples = Samples(*(x.to(world.device) for x in (pixels, labels, torch.arange(batch))))

    def took(side: int) -> tuple[float, float]:
        began = time.perf_counter(), time.process_time()
        batches = iter([made(config, samples, side)])
        lr = config.optimizer.lr
        take_step(engine, ema, next(numbers), lr, batches, lambda b: objective(engine, b), lambda _: None)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began[0], time.process_time() - began[1]

    all_sides = [*sorted(sides), data.size]
    for side in all_sides:
        took(side)
    timed = [{side: took(side) for side in all_sides[:: 1 if k % 2 else -1]} for k in range(rounds)]
    process_group.stop()
    spans, work = config.train.spans, Work(config, data.schema, data.size)
    flops = {span.side(data.size): work.flops(span.first, span.first + 1) for span in spans}

    def median(side: int, which: int) -> float:
        return round(statistics.median(row[side][which] for row in timed), 4)

    def ratio(side: int, which: int) -> float:
        return round(statistics.median(row[side][which] / row[data.size][which] for row in timed), 3)

    return {
        "config": path.name,
        "device": world.device.type,
        "batch": batch,
        "rounds": rounds,
        "sides": {
            side: {
                "seconds": median(side, 0),
                "cpu_seconds": median(side, 1),
                "ratio": ratio(side, 0),
                "cpu_ratio": ratio(side, 1),
                "flops_ratio": round(flops[side] / flops[data.size], 3),
            }
            for side in all_sides
        },
    }


if __name__ == "__main__":
    main()
