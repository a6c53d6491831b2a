"""torch.compile: code that was compiled is kept where nobody else can change it."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from torch._inductor.runtime.runtime_utils import cache_dir

from diffbase.cli import InputError
from diffcore.models.compiling import CACHE, own_cache


def test_what_is_compiled_lies_in_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(CACHE, "")  # so that it is taken back afterwards
    monkeypatch.delenv(CACHE)
    folder = own_cache()
    assert folder == tmp_path / f"diffcore-inductor-{os.geteuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert Path(cache_dir()) == folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_a_folder_that_somebody_made_before_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers = tmp_path / "cache"
    strangers.mkdir(mode=0o755)
    os.chown(strangers, 65534, 65534)
    monkeypatch.setenv(CACHE, str(strangers))
    with pytest.raises(InputError, match=rf"engine\.compile: {strangers} belongs to nobody.*\${CACHE}"):
        own_cache()


def test_a_folder_that_all_may_write_into_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"cache can be written by everybody"):
        own_cache()
