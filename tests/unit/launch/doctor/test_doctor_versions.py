"""Versions against the ranges of the installed metadata."""

from __future__ import annotations

import email.message
import platform
import sys
from importlib import metadata

import pytest

from launch.doctor.finding import Finding
from launch.doctor.versions import versions

REQUIRES = [
    "torch<2.14,>=2.11",
    "deepspeed<0.20,>=0.19.8",
    "numpy>=2",
    "PyYAML>=6",
    'only-elsewhere>=1; sys_platform == "elsewhere"',
    'deflate>=0.7; extra == "fast"',
    'opencv>=4; extra == "fast"',
    'unheard-of; extra == "new"',
]
INSTALLED = {"torch": "2.12.1+cu130", "deepspeed": "0.19.8", "numpy": "2.4.0", "PyYAML": "6.0"}


class Installed:
    """The metadata of diffcore as an installer leaves it."""

    version = "0.1.0"
    requires = REQUIRES

    def __init__(self, python: str) -> None:
        self.metadata = email.message.Message()
        self.metadata["Requires-Python"] = python
        self.metadata["Provides-Extra"] = "fast"
        self.metadata["Provides-Extra"] = "new"


def found(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str | None] | None = None, python: str = ">=3.11"
) -> dict[str, Finding]:
    """Findings by name, of ``INSTALLED`` with changes; None takes a package away."""
    there = INSTALLED | (changed or {})

    def version(name: str) -> str:
        if (known := there.get(name)) is None:
            raise metadata.PackageNotFoundError(name)
        return known

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(python))
    monkeypatch.setattr(metadata, "version", version)
    lines = list(versions())
    assert len({line.name for line in lines}) == len(lines)
    return {line.name: line for line in lines}


def test_all_in_range(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = found(monkeypatch)
    assert list(lines) == [
        "Python",
        "diffcore",
        "torch",
        "deepspeed",
        "dependencies",
        "extra fast",
        "extra new",
    ]
    assert {line.status for line in lines.values()} == {"ok"}
    assert lines["torch"].found == "2.12.1+cu130 (>=2.11,<2.14)"
    assert lines["dependencies"].found == "numpy 2.4.0, PyYAML 6.0"
    assert lines["Python"].found == platform.python_version()


def test_extras_say_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    line = found(monkeypatch)["extra fast"]
    assert line.found == "for faster reading of PNG and WebP shards; not installed: deflate, opencv"
    assert line.todo is None
    line = found(monkeypatch, {"deflate": "0.8"})["extra fast"]
    assert line.found == "deflate 0.8; not installed: opencv"


def test_an_extra_out_of_range_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    line = found(monkeypatch, {"deflate": "0.6"})["extra fast"]
    assert line.status == "warn"
    assert line.todo == 'pip install "deflate>=0.7"'


@pytest.mark.parametrize("version", ["2.10.2", "2.14.0", "3.0"])
def test_out_of_range(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    line = found(monkeypatch, {"torch": version})["torch"]
    assert line.status == "bad"
    assert line.found == f"torch {version}; diffcore needs >=2.11,<2.14"
    assert line.todo == 'pip install "torch>=2.11,<2.14"'


def test_a_nightly_build_is_in_range(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, {"torch": "2.13.0.dev20260901+cu130"})["torch"].status == "ok"


@pytest.mark.parametrize(("name", "line"), [("deepspeed", "deepspeed"), ("numpy", "dependencies")])
def test_missing(monkeypatch: pytest.MonkeyPatch, name: str, line: str) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda _: Installed(">=3.11"))

    def version(asked: str) -> str:
        if asked == name:
            raise metadata.PackageNotFoundError(asked)
        return {**INSTALLED, "deflate": "1", "opencv": "4", "unheard-of": "1"}[asked]

    monkeypatch.setattr(metadata, "version", version)
    lines = [one for one in versions() if one.name == line]
    assert lines[0].status == "bad"
    assert lines[0].found == f"{name} is not installed"
    if line == "dependencies":  # what is well is told beside it
        assert lines[1].found == "PyYAML 6.0"


def test_the_wrong_python(monkeypatch: pytest.MonkeyPatch) -> None:
    line = found(monkeypatch, python=">=3.99")["Python"]
    assert line.status == "bad"
    assert "needs >=3.99" in line.found


def test_a_bare_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    lines = list(versions())
    assert [(line.name, line.status) for line in lines] == [("Python", "ok"), ("diffcore", "warn")]
    assert "no version could be held against its range" in lines[1].found


def test_without_packaging_it_fails_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    with pytest.raises(ImportError):
        list(versions())
