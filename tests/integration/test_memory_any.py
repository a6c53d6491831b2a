"""Memory plans of networks of diffusers and transformers, beside their real training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from diffbase.files import REPOSITORY
from tests.integration.conftest import run

FIGURES = ("after step", "activations", "backward peak", "step peak")


@pytest.mark.timeout(600)
def test_plans_of_others_networks_are_what_their_training_allocates(tmp_path: Path) -> None:
    """States equal to the byte, all else within 1 %: eleven networks, in which every strategy is."""
    out = tmp_path / "truth.json"
    program = str(REPOSITORY / "benchmarks" / "memory_any.py")
    finished = run([sys.executable, program, "--ci", "--json", str(out)], REPOSITORY, timeout=500)
    assert finished.code == 0, finished.err[-3000:]
    rows = json.loads(out.read_text())["rows"]
    assert {row["cell"]["strategy"] for row in rows} == {"plain", "ddp", "fsdp2", "zero1", "zero2", "zero3"}
    assert len({row["cell"]["network"] for row in rows}) == 11
    for row in rows:
        assert row["planned"]["states"] == row["measured"]["states"], row["cell"]
        for name in FIGURES:
            assert row["planned"][name] == pytest.approx(row["measured"][name], rel=0.01), (name, row["cell"])
