"""A training step with Muon beside the same step with AdamW: seconds and CPU seconds, in turns.

    python benchmarks/optimizer_step.py [--config configs/demo-adamw.yaml] [--ranks 2] [--zero 1] [--rounds 9]

Both optimizers live in the same processes, each with an engine and a network of its own, and take turns of
``--steps`` steps on the same random images. A round's order turns; ratios are medians of the rounds' ratios
(Muon over AdamW), with their quartiles. CPU seconds say more where other work shares the cores. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.engine_step import measured, turns
from diffcore import models
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.diffusion.loss import WEIGHTS, denoising_loss
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine import construction, process_group
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World
from diffcore.engine.step import take_step
from diffcore.models.flops import optimizer_flops, training_flops
from shards.schema import CARTOON_SET

SIZE = 64
KINDS = ("adamw", "muon")


def stepper(config: Config, world: World) -> Callable[[], Any]:
    """One optimizer step of an engine of its own."""
    torch.manual_seed(config.seed)
    built = construction.build(lambda: models.build(config.model, CARTOON_SET, SIZE), config, world)
    engine = Engine(models.prepare(built, config.engine), config, world)
    ema, schedule = Ema(engine, config.ema), NoiseSchedule.of(config.diffusion)
    weights_T = WEIGHTS[config.diffusion.loss_weight](schedule)
    inputs = models.example_batch(engine.micro, CARTOON_SET, SIZE, world.device)
    images = torch.rand_like(inputs.x_BCHW) * 2 - 1

    def loss_of(_: Any) -> torch.Tensor:
        t_B = torch.randint(0, config.diffusion.timesteps, inputs.t_B.shape, device=world.device)
        draws = Draws(t_B, torch.randn_like(images), inputs.keep_B)
        return denoising_loss(engine, schedule, weights_T, images, inputs.labels_BA, draws)

    def step() -> None:
        micro = iter(range(engine.accumulation))
        take_step(engine, ema, 1, config.optimizer.lr, micro, loss_of, lambda _: None)

    return step


def work(a: argparse.Namespace) -> None:
    """One rank."""
    world = process_group.start(a.out.parent, 1)
    steps, config = {}, configure.load(a.config)
    for kind in KINDS:
        config = configure.load(a.config, {"engine": {"zero": a.zero}, "optimizer": {"kind": kind}})
        steps[kind] = stepper(config, world)
    for step in steps.values():
        measured(step, 3, world)
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for order in turns(KINDS, a.rounds):
        for kind in order:
            wall, cpu = measured(steps[kind], a.steps, world)
            total = torch.tensor(cpu, dtype=torch.float64)
            if world.size > 1:
                torch.distributed.all_reduce(total)
            seconds[kind].append((wall, float(total)))
    if world.main:
        own = optimizer_flops(config.model, config.optimizer, CARTOON_SET, SIZE)
        images = config.batch.size * training_flops(config.model, CARTOON_SET, SIZE)
        found: dict[str, Any] = {"ranks": world.size, "zero": a.zero, "newton_schulz_share": own / images}
        for number, name in enumerate(("seconds", "cpu_seconds")):
            ratios = [m[number] / w[number] for w, m in zip(*(seconds[k] for k in KINDS), strict=True)]
            quartiles = statistics.quantiles(ratios, n=4)
            found[name] = {k: round(statistics.median(s[number] for s in seconds[k]), 4) for k in KINDS}
            found[name]["ratio"] = [round(q, 3) for q in (quartiles[1], quartiles[0], quartiles[2])]
        a.out.write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that shuts down


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("configs/demo-adamw.yaml"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="of a side in a round")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.out is not None:
        work(a)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        out = Path(folder) / "run" / "found.json"
        out.parent.mkdir(mode=0o700)
        place = {"WORLD_SIZE": str(a.ranks), "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *sys.argv, "--out", str(out)]
        start = partial(subprocess.Popen, command)
        ranks = [
            start(env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(a.ranks)
        ]
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            sys.exit(1)
        print(out.read_text())


if __name__ == "__main__":
    main()
