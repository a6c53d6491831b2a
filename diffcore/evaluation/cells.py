"""One cell of a table of sampling settings: the same wishes and noise as in every other, drawn and judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcore import configure
from diffcore.config import Sampling
from diffcore.evaluation import distances, draws, looks
from diffcore.evaluation.intervals import Mean, paired_difference
from diffcore.evaluation.judge import Judge, Scores
from diffcore.sample import TrainedModel
from diffcore.world import World


@dataclass(frozen=True)
class Cell:
    """Settings, images and what the judge says of them."""

    sampling: Sampling
    images: NDArray[np.uint8]
    scores: Scores
    frechet: float
    diversity: float
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.sampling.sampler} {self.steps}"

    @property
    def steps(self) -> int | str:
        return "all" if self.sampling.sampler == "ddpm" else self.sampling.steps

    def figures(self) -> dict[str, Any]:
        return {
            "sampler": self.sampling.sampler,
            "steps": self.steps,
            "guidance": self.sampling.guidance,
            "clamp": self.sampling.clamp,
            "samples": len(self.images),
            "fidelity": self.scores.mean.as_dict(),
            "attributes": {name: share.as_dict() for name, share in self.scores.shares.items()},
            "frechet": self.frechet,
            "diversity": self.diversity,
            "seconds": round(self.seconds, 1),
        }


class Table:
    """Draws cells. ``repeats`` samples in a row share their labels: diversity is the distance among them."""

    def __init__(
        self,
        model: TrainedModel,
        judge: Judge,
        real_NF: NDArray[np.float32],
        world: World,
        samples: int,
        repeats: int = 1,
        seed: int = 1,
    ) -> None:
        self.model, self.judge, self.real_NF, self.world = model, judge, real_NF, world
        self.repeats, self.seed = repeats, seed
        self.labels_NA = draws.wishes(model, -(-samples // repeats), seed).repeat(repeats, axis=0)

    def cell(self, say: Callable[[str], None], **settings: Any) -> Cell:
        """The cell of the run's sampling settings with these changed. A collective."""
        began = time.monotonic()
        sampling = configure.replace(self.model.config, "sampling", settings).sampling
        images = draws.draw(self.model, self.labels_NA, sampling, self.seed, self.world)
        reading = self.judge.read(images)
        scores = self.judge.score(images, self.labels_NA, reading)
        groups = looks.thumbnails(images).reshape(len(images) // self.repeats, self.repeats, -1)
        diversity = float(np.mean([looks.spread(group) for group in groups]))
        frechet = distances.frechet(self.real_NF, reading.features_NF)
        cell = Cell(sampling, images, scores, frechet, diversity, time.monotonic() - began)
        mean = scores.mean
        say(
            f"{cell.name}, guidance {sampling.guidance:g}: fidelity {mean.mean:.1%} ({mean.low:.1%} to "
            f"{mean.high:.1%}), Frechet {frechet:.2f}, {cell.seconds:.0f} s"
        )
        return cell

    def difference(self, cell: Cell, other: Cell) -> Mean:
        """Mean fidelity of one cell minus another's, sample by sample."""
        columns = [i for i, a in enumerate(self.judge.schema) if a.name in self.judge.readable]
        first, second = cell.scores, other.scores
        return paired_difference(
            first.hit_NA[:, columns], second.hit_NA[:, columns], first.counted_NA[:, columns]
        )
