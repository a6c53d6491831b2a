"""Classes and pictures without labels: from folders of images through training to samples."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from shards import pack
from tests.integration.conftest import REPOSITORY, Train, run


def pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"picture{i}.png")


@pytest.mark.parametrize("classes", [("cats", "dogs", "eels"), ()])
def test_a_folder_of_images_trains_a_ddpm(classes: tuple[str, ...], train: Train, small: Path) -> None:
    source, packed = small.parent / "images", small.parent / "packed_images"
    for name in classes or ("",):
        pictures(source / name if name else source, 12)
    pack.main([str(source), "--out", str(packed), "--size", "16", "--jobs", "1"])
    tree = yaml.safe_load(small.read_text()) | {"data": {"path": str(packed)}}
    tree["model"] = {"kind": "ddpm", "width": 8, "labels": "embedding" if classes else "none"}
    if not classes:
        tree["diffusion"]["label_dropout"] = 0
        tree["sampling"]["guidance"] = 1
    small.write_text(yaml.safe_dump(tree))
    train(ranks=2)

    out = small.parent / "grid.png"
    wanted = ["--set", "class=2"] if classes else []
    command = ["-m", "diffcore.sample", "--run", str(small.parent / "run"), *wanted, "--out", str(out)]
    finished = run([sys.executable, *command], cwd=REPOSITORY)
    assert finished.code == 0, finished.err
    cells = json.loads(out.with_suffix(".json").read_text())["cells"]
    assert [cell["attributes"] for cell in cells] == [{"class": 2} if classes else {}] * 4
