"""A run's ``metrics.jsonl`` (and its ``colors.json``), as a resume, the summary and the studies read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

from diffbase.cli import InputError, finite
from diffbase.formats import jsonl
from diffcore.evaluation.studies.curve import mean_loss
from diffcore.runs import metrics
from diffcore.runs.figures import figures, numbers
from diffcore.training.loggers.monitor import Monitor
from tests.support.fuzz.target import Target

LINES: list[dict[str, Any]] = [
    {"step": step, "train/loss": 1 / step, "train/images_per_second": 10.5, "train/samples": 8 * step,
     "memory/process_mib": 300.0, "validation/loss": float("nan") if step == 2 else 0.5}
    for step in (1, 2, 3)
]  # fmt: skip
AGREEMENT = {"samples": 8, "asked": 0.9, "real_images": 1.0, "shuffled_wishes": 0.1}
WORDS = [b'"train/loss"', b'"step"', b'{"step": 3, "train/loss": NaN}\n', b"1e400", b'"samples"']


def target() -> Target:
    text = jsonl.text(LINES).encode()

    def feed(data: bytes, folder: Path) -> object:
        found: list[dict[str, Any]] = []
        told: list[InputError] = []
        for name in (metrics.FILE, "colors.json"):
            run = folder / name[:5]
            run.mkdir()
            (run / metrics.FILE).write_bytes(text)
            (run / name).write_bytes(data)
            try:
                found.append(figures(run))
            except InputError as error:
                told.append(error)
        for one in found:
            numbers(one)
            json.dumps(finite(one), allow_nan=False)
        run = folder / metrics.FILE[:5]
        mean_loss(run, 0, 2)
        steps = [line["step"] for line in metrics.read(run) if line["step"] <= 2]
        with patch.object(Monitor, "_board"):  # TensorBoard, which takes its time
            Monitor(run, 2, 10, active=True)
        assert [line["step"] for line in metrics.read(run)] == steps
        if not found:
            raise told[0]
        return found

    return Target([text, json.dumps({"agreement": {"hair_color": AGREEMENT}}).encode()], feed, WORDS)
