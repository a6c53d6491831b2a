"""Reading weights from a disk that fails: the newest checkpoint is waited for, never passed over for it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffbase import system_error
from diffbase.files import REPOSITORY
from diffcore.runs import checkpoint, saver, tensors
from tests.support import tiny_run
from tests.support.faults.kit import Faults, fail, short, why_not

KIT = pytest.mark.skipif(bool(why_not()), reason=f"LEFT OUT: {why_not()}; make system-test")
NEWEST = """
import contextlib, io, json, sys
from pathlib import Path
from diffbase import cli, system_error
from diffcore.runs import source
from tests.support.faults import kit

def weights():
    found = source.find(Path(run))
    return found.step, len(found.weights("ema"))

system_error.PAUSES = (0.0,) * 6
run, *files = sys.argv[1:]
for path in files:
    kit.take_up(path)
    code = told = 0
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            told = cli.run(weights)
        except SystemExit as left:
            code = left.code
        except Exception as error:
            code = repr(error)
    print(json.dumps([code, told, said.getvalue()]))
"""


def newest(run: Path, *cases: Sequence[str]) -> list[tuple[object, object, str]]:
    """For each case of rules: exit code, what was found (step, tensors) and what was said of it."""
    faults = Faults(run.parent)
    command = [sys.executable, "-c", NEWEST, str(run), *(str(faults.file(*rules)) for rules in cases)]
    done = subprocess.run(
        command, env=os.environ | faults.env(), capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module", params=["pieces", "whole"])
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Its COMPLETE with a digest of every piece, or of each file as older code wrote it."""
    made = tiny_run.write(tmp_path_factory.mktemp(request.param) / "run", 3, 7)
    if request.param == "whole":
        for folder in checkpoint.complete(made):
            digests = [saver._synced(path) for path in folder.iterdir() if path.name != "COMPLETE"]
            (folder / "COMPLETE").write_text(json.dumps({k: v for said in digests for k, v in said.items()}))
    return made


def openings(run: Path) -> int:
    """Of a shard: to check it and to read it, the older way twice (safetensors, torch)."""
    return 2 if run.parent.name.startswith("pieces") else 3


@pytest.mark.slow
@KIT
def test_faults_that_pass_choose_the_same_weights(run: Path) -> None:
    rules = [
        fail("open", errno.EMFILE, "step-00000007/shard-00000", after=1, times=2),  # safetensors' opening
        fail("open", errno.EMFILE, "step-00000007/shard-00000", after=2, times=2),  # torch's
        fail("open", errno.EIO, "step-00000007/COMPLETE", times=1),
        fail("open", errno.ESTALE, "step-00000007/state.json", times=3),
        fail("read", errno.EIO, "step-00000007/shard-00000", times=3),
        short("read", "step-0000"),
        fail("list", errno.EIO, "checkpoints", times=2),
        fail("stat", errno.ESTALE, "step-00000007/COMPLETE", times=2),
        fail("map", errno.ENOMEM, "step-00000007/shard-00000", times=1),
        fail("map", errno.ENODEV, "step-00000007/shard-00000", after=1, times=1),
        fail("open", errno.EIO, "config.yaml", times=2),
    ]
    whole, *found = newest(run, [], *([rule] for rule in rules), rules[2:])
    assert whole[0] == 0 and whole[1][0] == 7 and not whole[2]  # type: ignore[index]
    assert found == [whole] * (len(rules) + 1)


@pytest.mark.slow
@KIT
def test_a_fault_that_stays_is_told_and_no_older_checkpoint_taken(run: Path) -> None:
    shard, complete, config = "step-00000007/shard-00000", "step-00000007/COMPLETE", "run/config.yaml"
    cases = [("open", shard, n) for n in range(openings(run))] + [("list", "checkpoints", 0)]
    if openings(run) == 3:
        cases += [("map", shard, 0), ("map", shard, 1)]
    cases += [(call, part, 0) for call in ("open", "read", "stat") for part in (shard, complete, config)]
    for case, (code, _, said) in zip(
        cases, newest(run, *([fail(call, errno.EIO, part, after=n)] for call, part, n in cases)), strict=True
    ):
        assert code == 75 and case[1] in said and said.count("\n") == 1, (case, code, said)
        assert "Input/output error (EIO, 7 tries)" in said, (case, said)


@pytest.mark.slow
@KIT
def test_a_file_that_may_not_be_read_is_named_with_its_reason(run: Path) -> None:
    shard = "step-00000007/shard-00000"
    for code, _, said in newest(
        run, *([fail("open", errno.EACCES, shard, after=n)] for n in range(openings(run)))
    ):
        assert code == 2 and shard in said and "Permission denied" in said and said.count("\n") == 1


@pytest.mark.parametrize("load", [tensors.open_tensors, tensors.load_tensors])
def test_no_such_file_is_what_safetensors_says_of_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: object
) -> None:
    monkeypatch.setattr(system_error, "PAUSES", (0.0,) * 6)
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError):
        load(path)  # type: ignore[operator]
    save_file({"a": torch.zeros(4)}, path)
    assert list(load(path).keys()) == ["a"]  # type: ignore[operator]
    real, left = tensors.safe_open, 3

    def passing(*given: object, **how: object) -> object:
        nonlocal left
        left -= 1
        if left >= 0:
            raise FileNotFoundError("No such file or directory")
        return real(*given, **how)

    monkeypatch.setattr(tensors, "safe_open", passing)
    assert list(tensors.open_tensors(path).keys()) == ["a"]
