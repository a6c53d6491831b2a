"""DeepSpeed's own JSON, as the config names one, up to DeepSpeed's reading of it."""

from __future__ import annotations

from pathlib import Path

from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.engine.engine import checked
from tests.support.fuzz.target import Target

WORDS = [
    b'"zero_optimization"',
    b'"stage": 1',
    b'"tensorboard": {"enabled": 1}',
    b'"flops_profiler": 1,',
    b'"amp": 1,',
]
WORDS += [
    b'"activation_checkpointing": [],',
    b'"elasticity": {"enabled": true},',
    b'"bf16": {},',
    b'"data_types": 1,',
]


def target() -> Target:
    demo = configure.load(REPOSITORY / "configs" / "demo.yaml", {"batch": {"size": 8, "micro": 4}})

    def feed(data: bytes, folder: Path) -> object:
        (folder / "x.json").write_bytes(data)
        config = configure.changed(demo, {"engine": {"deepspeed": folder / "x.json"}})
        tree = checked(config, 1)
        assert tree["train_batch_size"] == 8 and tree["gradient_accumulation_steps"] == 2
        return tree

    return Target([demo.engine.json_path.read_bytes()], feed, WORDS)
