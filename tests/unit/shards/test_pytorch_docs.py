"""The examples of docs/pytorch.md, run as they stand there, on a small folder."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from diffbase.files import REPOSITORY

TEXT = (REPOSITORY / "docs" / "pytorch.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
PLAIN, BY_NUMBER, LIGHTNING, ACCELERATE, WEBDATASET = EXAMPLES


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with data/demo in it, and no launcher."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo").symlink_to(packed)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def run(example: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "docs/pytorch.md", "exec"), names)
    return names


@pytest.mark.slow
def test_the_plain_loop_resumes_exactly(tmp_path: Path) -> None:
    whole = run(PLAIN)["network"].state_dict()
    (tmp_path / "checkpoint.pt").unlink()
    run(PLAIN.replace("STEPS, FILE = 20", "STEPS, FILE = 10"))
    again = run(PLAIN)
    assert again["done"] == 10 and again["step"] == 20
    for name, tensor in again["network"].state_dict().items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.slow
def test_a_stream_is_put_somewhere_and_samples_have_numbers() -> None:
    names = run(BY_NUMBER)
    assert names["image"].dtype == torch.uint8 and names["image"].shape[1:] == (3, 4, 4)


@pytest.mark.slow
def test_the_pipeline_of_webdataset() -> None:
    names = run(WEBDATASET)
    assert names["images"].shape == (24, 3, 4, 4) and -1 <= names["images"].min() < names["images"].max() <= 1
    assert names["labels"].shape == (24,) and names["labels"].dtype == torch.int64
    again = names["StatefulDataLoader"](names["pipeline"], batch_size=None, num_workers=2)
    again.load_state_dict(names["state"])
    images, _ = next(iter(again))
    names["pipeline"].load_state_dict(names["pipeline"].state_at(20))
    assert torch.equal(images, next(iter(names["pipeline"]))[0])


@pytest.mark.slow
@pytest.mark.parametrize(("module", "example"), [("lightning", LIGHTNING), ("accelerate", ACCELERATE)])
def test_other_trainers(module: str, example: str) -> None:
    compile(example, "docs/pytorch.md", "exec")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    run(example)
