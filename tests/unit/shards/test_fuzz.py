"""A part of benchmarks/fuzz_shards.py, with a fixed seed: damaged input is told, or gives a valid result."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from diffbase.files import REPOSITORY

HARNESS = REPOSITORY / "benchmarks" / "fuzz_shards.py"
KINDS = ["csv", "png", "one_filter", "jpeg", "webp", "tar", "cifar", "member", "shard", "index", "table"]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    code = runpy.run_path(str(HARNESS))
    return code, code["Fuzzer"](tmp_path_factory.mktemp("fuzz"))


def test_every_kind_is_fuzzed(harness) -> None:
    assert list(harness[1].kinds) == KINDS


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_told_or_valid(harness, kind: str) -> None:
    code, fuzzer = harness
    found = code["fuzz"](kind, 60, 1, fuzzer)
    assert found["told"] + found["valid"] == 60
    assert found["told"] > 5  # the changes do reach something
