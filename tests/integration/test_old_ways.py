"""Every command as it was called before there was one for all, with its exit code: golden/commands.json.

Made at 3aedb2b by running them there. An error is one line on stderr, of no more than this.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY, Finished, run

GOLDEN = json.loads((REPOSITORY / "tests" / "golden" / "commands.json").read_text())


def test_they_answer_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM", "XDG"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))

    def answer(entry: dict[str, object]) -> Finished:
        words = entry["words"]
        assert isinstance(words, list)
        return run([sys.executable, *words], cwd=REPOSITORY)

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(answer, GOLDEN))
    for entry, done in zip(GOLDEN, answers, strict=True):
        assert done.code == entry["code"], f"{entry}: {done}"
        if done.code == 2:
            assert done.err.startswith("error: ") and done.err.count("\n") == 1, f"{entry}: {done}"
