"""The cells of memory_truth.py: networks and settings, and which of them are run."""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

from diffcore.config.offload import OFFLOADS  # noqa: E402

SMALL_BUCKET = 100_000
"""Elements of a small network's buckets: the 50 million of configs/deepspeed would drown everything else."""
# fmt: off
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    # name: config, changes to its model, pixels
    "avatar": ("demo-adamw.yaml", {}, 16),
    "avatar-deep": ("avatar-adamw.yaml", {"channels": [16, 32, 64, 128]}, 16),
    "ddpm": ("ddpm-cifar10.yaml", {"width": 16, "embedding": 64}, 16),
    "diffusers": ("diffusers-32.yaml", {
        "block_out_channels": [32, 64, 96], "attention_head_dim": 8, "cross_attention_dim": 64,
        "tau_tokens": 16, "layers_per_block": 1,
    }, 16),
    "avatar-options": ("demo-adamw.yaml", {
        "head": "refine", "tau": "attribute", "tau_tokens": 1, "self_attention_levels": [2],
        "blocks": [1, 1, 2], "label_gain": 10.0, "label_maps": 4,
    }, 16),
    "avatar-full": ("avatar-adamw.yaml", {}, 64),
    "ddpm-full": ("ddpm-cifar10.yaml", {}, 64),
    "diffusers-full": ("diffusers-32.yaml", {}, 64),
}
# fmt: on
CHECKPOINTING = ("none", "selective", "full")
MET = (
    ("ddpm", 1, "bf16", "full", 4, 2, "none", 8, 0, "fake"),
    ("avatar", 2, "fp32", "none", 4, 2, "optimizer", 1, 0, "gloo"),
)
"""Once wrong, and in no pairwise cell: a second micro batch's gradients are added without a copy (1.1 %), and
gradients on the way to an offloaded optimizer stay until the end of their micro batch (2.7 %)."""
LAST = (
    ("diffusers", 1, "bf16", "none", 4, 2, "none", 2, 0, "gloo", True),
    ("avatar", 0, "bf16", "selective", 4, 1, "none", 1, 0, "gloo", True),
)
"""In channels_last, which is no setting of the product."""

OPTIONS = (
    ("avatar-options", 1, "fp32", "none", 4, 1, "none", 2, 0, "gloo"),
    ("avatar-options", 3, "bf16", "full", 4, 1, "none", 2, 0, "gloo"),
)
"""The avatar network's options, in two cells."""


MUON = (
    ("avatar", 0, "fp32", "none", 4, 1, "none", 2, 0, "gloo", False, "muon"),
    ("avatar", 1, "fp32", "none", 1, 1, "none", 2, 0, "gloo", False, "muon"),
    ("avatar-deep", 2, "bf16", "none", 1, 2, "none", 2, 0, "gloo", False, "muon"),
    ("ddpm", 3, "bf16", "none", 1, 1, "none", 2, 0, "gloo", False, "muon"),
    ("diffusers", 2, "fp32", "none", 1, 1, "optimizer", 1, 0, "gloo", False, "muon"),
    ("avatar", 1, "bf16", "none", 1, 1, "none", 64, 63, "fake", False, "muon"),
    ("avatar-deep", 3, "fp32", "none", 1, 1, "none", 8, 7, "fake", False, "muon"),
)
"""With Muon, which is no setting of the product either."""


@dataclass(frozen=True)
class Cell:
    model: str
    zero: int
    precision: str
    checkpointing: str
    micro: int
    accumulation: int
    offload: str
    world: int
    rank: int
    backend: str
    channels_last: bool = False
    optimizer: str = "adamw"

    def __str__(self) -> str:
        return (
            f"{self.model:14} zero {self.zero} {self.precision} {self.checkpointing:9} micro {self.micro:2} "
            f"x {self.accumulation}, offload {self.offload:10}, rank {self.rank:4} of {self.world:4} "
            f"{self.backend:4}{' channels_last' * self.channels_last}"
            f"{' muon' * (self.optimizer == 'muon')}"
        )

    def allowed(self) -> bool:
        """Offloading is compared where host and device are one memory.

        ZeRO-3 cuts every tensor for each rank: of 1,024 the profiler's record takes over 10 GB.
        """
        offload = self.offload == "none" or self.backend == "gloo"
        return offload and self.zero in OFFLOADS[self.offload].stages and (self.zero < 3 or self.world < 1024)


def small(worlds: list[tuple[str, int]]) -> list[Cell]:
    """The whole product of the small networks' settings, first and last ranks."""
    settings = itertools.product(
        [name for name in MODELS if not name.endswith(("full", "options"))],
        range(4),
        ["fp32", "bf16"],
        CHECKPOINTING,
        [1, 4, 16],
        [1, 2],
        list(OFFLOADS),
        [(b, n, r) for b, n in worlds for r in ([0, n - 1] if b == "fake" else [0])],
    )
    cells = [Cell(*rest, world, rank, backend) for *rest, (backend, world, rank) in settings]
    return [cell for cell in cells if cell.allowed()]


def full() -> list[Cell]:
    """The seeds' networks at their own size: every stage, precision and checkpointing, alone and in two.

    And pairwise cells with micro batches up to 16 and 4 processes, where two groups fit into 24 GB.
    """

    def product(micros: list[int], worlds: list[tuple[int, str]]) -> list[Cell]:
        names = ["avatar-full", "ddpm-full", "diffusers-full"]
        settings = itertools.product(names, range(4), ["fp32", "bf16"], CHECKPOINTING, micros, worlds)
        cells = [Cell(m, z, p, c, n, 1, "none", w, 0, b) for m, z, p, c, n, (w, b) in settings]
        return [cell for cell in cells if cell.allowed()]

    whole = product([1], [(1, "gloo"), (2, "gloo"), (8, "fake"), (1024, "fake")])
    wide = product([1, 4, 16], [(1, "gloo"), (2, "gloo"), (4, "gloo"), (8, "fake")])
    fits = [cell for cell in wide if cell.backend == "fake" or cell.world * cell.micro <= 16]
    fits = [cell for cell in fits if (cell.model, cell.world) != ("diffusers-full", 4)]
    return list(dict.fromkeys([*whole, *pairwise(fits)]))


def ci(count: int = 39) -> list[Cell]:
    """MET, LAST, OPTIONS, MUON and pairwise cells twice over, ``count``: first whole, some of the second."""
    cells = small([("gloo", 1), ("gloo", 2), ("fake", 8), ("fake", 64)])
    met = [Cell(*settings) for settings in (*MET, *LAST, *OPTIONS, *MUON)]
    return list(dict.fromkeys([*met, *pairwise(cells), *pairwise(cells, seed=1)]))[:count]


def table(count: int = 600) -> list[Cell]:
    """Every pair of small settings, ``count`` more drawn from their product, and the full-size networks."""
    cells = small([("gloo", 1), ("gloo", 2), ("gloo", 4), ("fake", 8), ("fake", 64), ("fake", 1024)])
    drawn = random.Random(0).sample(cells, min(count, len(cells)))
    return list(dict.fromkeys([*ci(), *pairwise(cells, seed=1), *drawn]))


def pairwise(cells: list[Cell], seed: int = 0) -> list[Cell]:
    """Few cells in which every pair of two settings that occurs at all occurs at least once."""
    order = random.Random(seed)
    pairs = {cell: set(itertools.combinations(asdict(cell).items(), 2)) for cell in cells}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(order.sample(cells, min(len(cells), 800)), key=lambda cell: len(pairs[cell] & missing))
        if pairs[best] & missing:
            chosen.append(best)
            missing -= pairs[best]
    return chosen


def config_of(cell: Cell) -> Any:
    from diffcore.config.configure import load

    name, model, _ = MODELS[cell.model]
    engine: dict[str, Any] = {
        "zero": cell.zero,
        "precision": cell.precision,
        "checkpointing": cell.checkpointing,
        "offload": cell.offload,
        "channels_last": cell.channels_last,
        "threads": 1,
    }
    if not cell.model.endswith("full") and cell.accumulation == 1:  # else they are "auto", as shipped
        path = REPOSITORY / "configs" / "deepspeed" / f"zero{cell.zero}.json"
        tree = json.loads(path.read_text())
        for key in ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"):
            if key in tree["zero_optimization"]:
                tree["zero_optimization"][key] = SMALL_BUCKET
        if cell.zero == 3:
            tree["zero_optimization"]["stage3_param_persistence_threshold"] = 3000
        folder = Path(tempfile.gettempdir()) / f"memory-truth-{os.getuid()}"
        folder.mkdir(exist_ok=True)
        smaller = folder / f"zero{cell.zero}-{os.getpid()}.json"
        smaller.write_text(json.dumps(tree))
        engine["deepspeed"] = smaller
    batch = {"micro": cell.micro, "size": cell.micro * cell.accumulation * cell.world}
    ema = {"posthoc": [0.05, 0.1]} if cell.model == "avatar-options" else {}
    optimizer = {"kind": cell.optimizer}
    tree = {"model": model, "engine": engine, "batch": batch, "optimizer": optimizer, "ema": ema}
    return load(REPOSITORY / "configs" / name, tree)
