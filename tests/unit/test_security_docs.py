"""docs/security.md names a test for every promise: each is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
TEXT = (TESTS.parent / "docs" / "security.md").read_text()
ROWS = [
    line for line in TEXT.split("## What holds")[1].split("\n## ")[0].splitlines() if line.startswith("| ")
][1:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_a_promise_has_its_tests(row: str) -> None:
    named = re.findall(r"`([^`]+)::(\w+)`", row.split("|")[2])
    assert named
    for file, name in named:
        tree = ast.parse((TESTS / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            f"{file}::{name}"
        )
