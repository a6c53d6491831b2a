"""Installed versions, held against the ranges that diffcore's own metadata declares."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from launch.doctor.finding import Finding, bad, ok, warn

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "diffcore"
ALONE = ("torch", "deepspeed")
"""Dependencies with a line of their own; the others share one."""
EXTRAS = {
    "all": "everything optional that a run can use",
    "render": "drawing the stand-in avatars",
    "diffusers": "networks of diffusers",
    "evaluate": "distances between drawn and real images",
    "fast": "faster reading of PNG and WebP shards",
    "test": "running the tests",
    "bench": "the benchmarks beside other trainers",
    "dev": "working on diffcore itself",
}
"""What the optional dependencies are for."""


def versions() -> Iterator[Finding]:
    """Python, diffcore, its dependencies, and the optional ones."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python = platform.python_version()
    try:
        own = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        yield ok("Python", python)
        yield warn(
            PACKAGE,
            "a bare checkout: it is not installed, so no version could be held against its range",
            "pip install -e . in the checkout",
        )
        return
    allowed = own.metadata["Requires-Python"] or ""
    if SpecifierSet(allowed).contains(python, prereleases=True):
        yield ok("Python", python)
    else:
        yield bad("Python", f"{python}; {PACKAGE} needs {_range(allowed)}", "make .venv with another Python")
    yield ok(PACKAGE, own.version)
    requirements = [Requirement(text) for text in own.requires or ()]
    needed = [one for one in requirements if _wanted(one, "")]
    yield from (_alone(one) for one in needed if one.name in ALONE)
    yield from _together([one for one in needed if one.name not in ALONE])
    for extra in own.metadata.get_all("Provides-Extra") or ():
        yield _extra(extra, [one for one in requirements if not _wanted(one, "") and _wanted(one, extra)])


def _wanted(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _installed(requirement: Requirement) -> str | None:
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None


def _problem(requirement: Requirement, version: str | None) -> str | None:
    """What is wrong with a version, None if nothing. A nightly build of the right version is none."""
    if version is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version}; {PACKAGE} needs {_range(str(requirement.specifier))}"
    return None


def _alone(requirement: Requirement) -> Finding:
    version = _installed(requirement)
    if problem := _problem(requirement, version):
        return bad(requirement.name, problem, _install([requirement]))
    return ok(requirement.name, f"{version} ({_range(str(requirement.specifier))})")


def _together(requirements: list[Requirement]) -> Iterator[Finding]:
    found = {one: _installed(one) for one in requirements}
    problems = {one: problem for one, version in found.items() if (problem := _problem(one, version))}
    for one, problem in problems.items():
        yield bad("dependencies", problem, _install([one]))
    if fine := [f"{one.name} {version}" for one, version in found.items() if one not in problems]:
        yield ok("dependencies", ", ".join(fine))


def _extra(extra: str, requirements: list[Requirement]) -> Finding:
    found = {one: _installed(one) for one in requirements}
    purpose = EXTRAS.get(extra, f"see pyproject.toml, [{extra}]")
    there = [f"{one.name} {version}" for one, version in found.items() if version is not None]
    missing = [one.name for one, version in found.items() if version is None]
    wrong = [one for one, version in found.items() if version is not None and _problem(one, version)]
    if wrong:
        problems = "; ".join(str(_problem(one, found[one])) for one in wrong)
        return warn(f"extra {extra}", problems, _install(wrong))
    text = ", ".join(there) if there else f"for {purpose}"
    return ok(f"extra {extra}", text + (f"; not installed: {', '.join(missing)}" if missing else ""))


def _range(specifier: str) -> str:
    """``>=2.11,<2.14``: the lower bound first."""
    return ",".join(sorted(re.split(r"\s*,\s*", specifier), reverse=True)) or "any"


def _install(requirements: list[Requirement]) -> str:
    return "pip install " + " ".join(f'"{one.name}{_range(str(one.specifier))}"' for one in requirements)
