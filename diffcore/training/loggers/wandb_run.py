"""W&B: one run over all restarts. Where it goes and who may see it is WANDB_MODE's, WANDB_ENTITY's, ...

Nothing of the process is sent beside figures, pictures and config: no output, code, environment or host.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffcore.training.loggers import identity


class WandbRun:
    """A ``Logger``. ``config``: shown beside the figures."""

    name = "wandb"

    def __init__(self, run: Path, project: str, config: Mapping[str, Any]) -> None:
        self.run, self._project, self._config = run, project, config
        self._run: Any = None
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

    def begin(self) -> int | None:
        """As of Logger. Offline a life does not know what others left."""
        import wandb

        number = identity.kept(self.run, self.name).id or secrets.token_hex(8)
        identity.keep(self.run, self.name, id=number)
        # fmt: off
        settings = wandb.Settings(
            console="off", silent=True, save_code=False, disable_code=True, disable_git=True,
            x_disable_meta=True, x_disable_stats=True, x_save_requirements=False, login_timeout=10,
        )
        # fmt: on
        self._run = wandb.init(
            project=self._project,
            name=self.run.name,
            id=number,
            resume="allow",
            dir=self.run,
            config=dict(self._config),
            settings=settings,
        )
        return int(self._run.step) - 1 if self._run.resumed else None

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """As of Logger."""
        self._run.log(dict(values), step=step)

    def image(self, tag: str, step: int, image_HWC: np.ndarray) -> None:
        """As of Logger."""
        import wandb

        self._run.log({tag: wandb.Image(image_HWC)}, step=step)

    def close(self) -> None:
        """As of Logger."""
        self._run.finish()
