"""MLflow: one run over all restarts, at MLFLOW_TRACKING_URI, or else in files under ``RUN/mlflow``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffcore.training.loggers import identity

KNOWN_BY = "train/loss"
"""A figure of every logged step, by which the newest one is known."""


class MlflowRun:
    """A ``Logger``. ``config``: the YAML that is kept with a new run."""

    name = "mlflow"

    def __init__(self, run: Path, experiment: str, config: str) -> None:
        self.run, self._experiment, self._config = run, experiment, config
        self._client: Any = None
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._place = os.environ.get("MLFLOW_TRACKING_URI") or (run.absolute() / "mlflow").as_uri()
        if self._place.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else MLflow 3 refuses its file store
        self._id = ""

    def begin(self) -> int | None:
        """As of Logger."""
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._place)
        if (known := identity.kept(self.run, self.name).id) is not None:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return max((point.step for point in self._client.get_metric_history(known, KNOWN_BY)), default=-1)
        found = self._client.get_experiment_by_name(self._experiment)
        number = found.experiment_id if found else self._client.create_experiment(self._experiment)
        self._id = self._client.create_run(number, run_name=self.run.name).info.run_id
        identity.keep(self.run, self.name, id=self._id)
        self._client.log_text(self._id, self._config, "config.yaml")
        return -1

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """As of Logger."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(tag, float(value), now, step) for tag, value in values.items()]
        self._client.log_batch(self._id, metrics=points)

    def image(self, tag: str, step: int, image_HWC: np.ndarray) -> None:
        """As of Logger."""
        self._client.log_image(self._id, image_HWC, artifact_file=f"{tag}-{step:08d}.png")

    def close(self) -> None:
        """As of Logger."""
        self._client.set_terminated(self._id)
