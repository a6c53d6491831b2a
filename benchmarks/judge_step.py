"""python benchmarks/judge_step.py [--rounds 4] [--images 1600]

What the judge costs to train, of an image of 64 x 64 with Cartoon Set's labels: CPU time and floating-point
operations of a step, with the network and optimizer of version 1 (AdamW, 64 images a step) and with today's
(Muon and AdamW, 32). The two in turns on one thread; the images are noise, which costs the same. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from diffcore.diffusion.pixels import to_signal  # noqa: E402
from diffcore.evaluation.judging import training  # noqa: E402
from diffcore.evaluation.judging.muon import Muon  # noqa: E402
from diffcore.evaluation.judging.network import JudgeNet  # noqa: E402
from shards.schema import CARTOON_SET  # noqa: E402

SIZE = 64
RECIPES: dict[str, dict[str, Any]] = {
    "version 1": {"batch": 64, "net": (32, 128, 1), "muon": False},
    "today": {"batch": training.BATCH, "net": (), "muon": True},
}


class Side:
    """One recipe's network and optimizers."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.batch, self.net = recipe["batch"], JudgeNet(CARTOON_SET, SIZE, *recipe["net"])
        convolutions = [p for p in self.net.maps.parameters() if p.ndim > 1] if recipe["muon"] else []
        mine = {id(parameter) for parameter in convolutions}
        self.muon = Muon(convolutions, training.DECAY)
        self.muon.lr = 1e-3
        others = [p for p in self.net.parameters() if id(p) not in mine]
        self.adamw = torch.optim.AdamW(others, 1e-3, fused=True)

    def train(self, images: Any, labels: Any, random: np.random.Generator) -> float:
        """CPU seconds an image."""
        began = time.process_time()
        for first in range(0, len(images), self.batch):
            part = slice(first, first + self.batch)
            x_BCHW = training.augment(to_signal(images[part]), random)
            loss = training.loss_of(CARTOON_SET, self.net(x_BCHW), torch.from_numpy(labels[part]))
            self.adamw.zero_grad()
            loss.backward()
            self.muon.step()
            self.adamw.step()
        return (time.process_time() - began) / len(images)

    def flops(self) -> float:
        """Of a forward and a backward pass, an image."""
        with FlopCounterMode(display=False) as counter:
            self.net(torch.zeros(2, 3, SIZE, SIZE)).sum().backward()
        return counter.get_total_flops() / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=1600, help="a round")
    a = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (a.images, SIZE, SIZE, 3), np.uint8)
    labels = random.integers(
        0, [attribute.variants for attribute in CARTOON_SET], (a.images, len(CARTOON_SET))
    )
    sides = {name: Side(recipe) for name, recipe in RECIPES.items()}
    for side in sides.values():
        side.train(images[:320], labels[:320], random)  # warms up
    rounds = [
        {name: side.train(images, labels, random) for name, side in sides.items()} for _ in range(a.rounds)
    ]
    print(
        json.dumps(
            {
                name: {
                    "cpu_ms_an_image": [round(1e3 * one[name], 3) for one in rounds],
                    "median_cpu_ms": round(1e3 * median(one[name] for one in rounds), 3),
                    "mflop_an_image": round(side.flops() / 1e6, 1),
                    "parameters": sum(parameter.numel() for parameter in side.net.parameters()),
                }
                for name, side in sides.items()
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
