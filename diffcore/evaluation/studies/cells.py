"""One cell of a table of sampling settings: the same labels and noise as in every other, drawn and judged."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffbase.files import set_aside, write_atomic
from diffbase.system_error import is_there, read_bytes
from diffcore.config.samplers import shown_steps
from diffcore.config.tree import Sampling
from diffcore.engine.ranks import World, gather_arrays
from diffcore.evaluation.judging.intervals import Mean, paired_difference
from diffcore.evaluation.judging.judge import Judge, Scores
from diffcore.evaluation.quality import distances, drawing, looks
from diffcore.runs.model import TrainedModel
from diffcore.runs.sampling import changed_sampling

PIECE = 256
"""Images of a file in ``keep``."""


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
        """Sampler and steps, as a table's row shows them."""
        return f"{self.sampling.sampler} {self.steps}"

    @property
    def steps(self) -> int | str:
        """Steps of the sampler, as ``shown_steps`` writes them."""
        return shown_steps(self.sampling.sampler, self.sampling.steps)

    def figures(self) -> dict[str, Any]:
        """Settings and results for JSON."""
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
    """Draws cells. ``repeats`` samples in a row share their labels: diversity is the distance among them.

    In the folder ``keep``, if any, images are kept as they are drawn and found again by a command that was
    interrupted: the same weights, labels, settings and seed make the same file name.
    """

    def __init__(
        self,
        model: TrainedModel,
        judge: Judge,
        real_NF: NDArray[np.float32],
        world: World,
        samples: int,
        repeats: int = 1,
        seed: int = 1,
        keep: Path | None = None,
    ) -> None:
        distances.require()
        self.model, self.judge, self.real_NF, self.world = model, judge, real_NF, world
        self.repeats, self.seed, self.keep = repeats, seed, keep
        self.labels_NA = drawing.asked_labels(model, -(-samples // repeats), seed).repeat(repeats, axis=0)
        self._origin = hashlib.sha256(self.labels_NA.tobytes())
        for tensor in model.network.state_dict().values() if keep else ():
            self._origin.update(tensor.cpu().contiguous().numpy())

    def cell(self, say: Callable[[str], None], **settings: Any) -> Cell:
        """The cell of the run's sampling settings with these changed. A collective."""
        began = time.monotonic()
        sampling = changed_sampling(self.model.config, settings)
        images = self._draw(sampling)
        reading = self.judge.read(images)
        scores = self.judge.score(images, self.labels_NA, reading)
        groups = looks.thumbnails(images).reshape(len(images) // self.repeats, self.repeats, -1)
        diversity = float(np.mean([looks.spread(group) for group in groups]))
        frechet = distances.frechet(self.real_NF, reading.features_NF)
        cell = Cell(sampling, images, scores, frechet, diversity, time.monotonic() - began)
        mean = scores.mean
        say(
            f"{cell.name}, guidance {sampling.guidance:g}: fidelity {mean.mean:.1%} ({mean.low:.1%} to "
            f"{mean.high:.1%}) over {len(self.judge.headline)} attributes, Frechet {frechet:.2f}, "
            f"{cell.seconds:.0f} s"
        )
        return cell

    def difference(self, cell: Cell, other: Cell) -> Mean:
        """Headline of one cell minus another's, sample by sample."""
        columns, first, second = self.judge.columns, cell.scores, other.scores
        return paired_difference(
            first.hit_NA[:, columns], second.hit_NA[:, columns], first.counted_NA[:, columns]
        )

    def _draw(self, sampling: Sampling) -> NDArray[np.uint8]:
        count = len(self.labels_NA)
        if self.keep is None:
            return drawing.draw(self.model, self.labels_NA, sampling, self.seed, self.world)
        name = self._origin.copy()
        name.update(json.dumps([self.seed, drawing.settings(sampling)], sort_keys=True).encode())
        pieces = []
        for first in range(0, count, PIECE):
            part = np.arange(first, min(first + PIECE, count))
            path = self.keep / f"{name.hexdigest()[:16]}-{first:06d}.npy"
            # Rank 0 alone looks and reads: the others may not see its disk.
            found = kept(path, len(part)) if self.world.main else np.empty(0, np.uint8)
            images = gather_arrays(found, self.world)[0]
            if not images.size:
                images = drawing.draw(
                    self.model, self.labels_NA[part], sampling, self.seed, self.world, positions_N=part
                )
                if self.world.main:
                    self.keep.mkdir(exist_ok=True)
                    np.save(stream := io.BytesIO(), images)
                    write_atomic(path, stream.getvalue())
            pieces.append(images)
        return np.concatenate(pieces)


def kept(path: Path, count: int) -> NDArray[np.uint8]:
    """``count`` images [N, H, W, 3] as a command kept them; none where there is no file.

    A damaged one is set aside. OSError as of ``system_error.read_bytes``.
    """
    if is_there(path):
        with contextlib.suppress(ValueError, EOFError, MemoryError):  # of a length that it has not, too
            images: NDArray[np.uint8] = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
            if images.dtype == np.uint8 and images.ndim == 4 and len(images) == count:
                return images
        set_aside(path)
    return np.empty(0, np.uint8)
