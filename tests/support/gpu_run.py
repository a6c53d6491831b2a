"""What a run on a GPU leaves of its speed and its settings."""

from __future__ import annotations

import json
from pathlib import Path


def a_run(
    folder: Path, device: str = "NVIDIA H200", rate: float = 1303.0, parameters: int = 76_902_915
) -> Path:
    folder.mkdir()
    moment = {"name": "after step", "bytes": {}, "host": 0, "allocated": 0, "reserved": 0}
    rank = {
        "rank": 0, "device": device, "parameters": parameters, "micro_batch": 128, "moments": [moment],
        "layers": [], "timeline": [], "closure": [], "notes": [],
    }  # fmt: skip
    about = {
        "model": "avatar", "parameters": parameters, "world": 1, "zero": 1, "precision": "bf16",
        "checkpointing": "none", "offload": "none", "micro_batch": 128, "accumulation": 1,
    }  # fmt: skip
    tree = {"schema": "diffcore.anatomy/1", "unit": "bytes", "run": about, "planned": [], "measured": [rank],
            "advice": []}  # fmt: skip
    (folder / "anatomy.json").write_text(json.dumps(tree))
    lines = [{"step": n, "train/images_per_second": rate + n - 2} for n in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
