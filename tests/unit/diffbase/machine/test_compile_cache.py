"""Code that torch compiled is kept, and loaded from, where nobody else can change it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffbase.machine import compile_cache
from diffbase.machine.compile_cache import VARIABLE

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "")  # so that it is taken back afterwards
    monkeypatch.delenv(VARIABLE)
    return tmp_path / compile_cache.name()


def test_a_folder_of_ones_own(temporary: Path) -> None:
    assert compile_cache.check() == temporary == Path(os.environ[VARIABLE])
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700


def test_each_kind_of_processor_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes code that was made with AVX2 where it may not use it, and fails to compile it."""
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    names = {compile_cache.name(), compile_cache.name()}
    for capability in ("default", "avx2"):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        names.add(compile_cache.name())
    assert len(names) == 3


@ROOT
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_name_that_somebody_took_stops_nobody(temporary: Path, kind: str) -> None:
    if kind == "folder":
        temporary.mkdir()
    elif kind == "file":
        temporary.touch()
    else:
        temporary.symlink_to(temporary.with_name("theirs"))
    os.chown(temporary, 65534, 65534, follow_symlinks=False)
    temporary.parent.chmod(0o1777)
    folder = compile_cache.check()
    assert folder != temporary and folder.parent == temporary.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@ROOT
def test_a_folder_that_was_named_and_is_somebodys_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers = tmp_path / "cache"
    strangers.mkdir(mode=0o755)
    os.chown(strangers, 65534, 65534)
    monkeypatch.setenv(VARIABLE, str(strangers))
    with pytest.raises(InputError, match=rf"engine\.compile: {strangers} belongs to nobody.*\${VARIABLE}"):
        compile_cache.check()


def test_a_folder_that_all_may_write_into_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"cache can be written by everybody"):
        compile_cache.check()


@pytest.mark.slow
def test_what_deepspeed_imports_uses_it(tmp_path: Path) -> None:
    code = (
        "import os\nfrom diffcore.engine.operators import compatible\ncompatible()\n"
        "from torch._inductor.runtime.runtime_utils import cache_dir\nprint(cache_dir())"
    )
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    env |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == str(tmp_path / compile_cache.name()), done.stderr
    assert not list(tmp_path.glob("torchinductor*"))
