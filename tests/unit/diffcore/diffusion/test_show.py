"""The picture of a schedule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.diffusion import forward_process, show

DEMO = str(REPOSITORY / "configs" / "demo.yaml")


def test_the_forward_process_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (90, 70), "red").save(tmp_path / "red.png")
    steep = ["--diffusion.schedule", "linear", "--diffusion.timesteps", "500", "--diffusion.beta_end", "0.2"]
    for name, overrides, warned in (("good", [], False), ("steep", steep, True)):
        out = tmp_path / f"{name}.png"
        show.main(["--config", DEMO, "--image", str(tmp_path / "red.png"), "--out", str(out), *overrides])
        printed = capsys.readouterr().out
        assert ("show nothing of the image" in printed) == warned
        picture = np.asarray(Image.open(out)).astype(float)
        strip = picture[forward_process.TITLE_HEIGHT + 2 : forward_process.TITLE_HEIGHT + 130]
        cells = strip.reshape(128, -1, 3)[:, 2:].reshape(128, 12, 130, 3)[:, :, :128]
        # The first level is nearly the picture, the last is noise.
        assert np.abs(cells[:, 0] - [255, 0, 0]).mean() < 25
        assert np.abs(cells[:, -1].mean((0, 1)) - 127).max() < 25 and cells[:, -1].std() > 60


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--image"):
        show.main(["--config", DEMO])
    with pytest.raises(InputError, match="not an image"):
        show.main(["--config", DEMO, "--image", DEMO, "--out", str(tmp_path / "x.png")])
