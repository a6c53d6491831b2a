"""The image's two recipes agree with each other and with the repository. Nothing is built."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CONTAINERFILE = (REPOSITORY / "containers" / "Containerfile").read_text()
DEFINITION = (REPOSITORY / "containers" / "diffcore.def").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
UBUNTU_PYTHON = {"22.04": (3, 10), "24.04": (3, 12), "26.04": (3, 14)}
"""The python3 of each Ubuntu."""


def instructions(word: str) -> list[str]:
    """Arguments of every such instruction of the Containerfile, continued lines joined."""
    lines = "\n".join(line for line in CONTAINERFILE.splitlines() if not line.startswith("#"))
    return re.findall(rf"^{word} (.+)$", lines.replace("\\\n", " "), re.MULTILINE)


def section(name: str) -> str:
    """A section of the Apptainer definition."""
    found = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", DEFINITION, re.MULTILINE | re.DOTALL)
    assert found, f"no %{name}"
    return found[1]


RUNS = instructions("RUN")
SHELL = RUNS + [section(name) for name in ("post", "environment", "runscript", "test")]


def commands(shell: list[str]) -> list[str]:
    """Its commands one by one, without what is only joining."""
    joined = "\n".join(shell).replace("\\\n", " ")
    return [" ".join(command.split()) for command in re.split(r"&&|\n", joined) if command.strip()]


def apt_packages(shell: list[str]) -> set[str]:
    return {
        word
        for command in commands(shell)
        if "apt-get install" in command
        for word in command.partition("apt-get install")[2].split()
        if not word.startswith("-")
    }


def copied() -> set[str]:
    """What the Containerfile takes from the repository."""
    return {
        source
        for arguments in instructions("COPY")
        if "--from=" not in arguments
        for source in arguments.split()[:-1]
    }


def test_both_install_alike() -> None:
    steps = ("/opt/diffcore", "python3", "site=", "mkdir")
    ours, theirs = (
        [command for command in commands(shell) if any(step in command for step in steps)]
        for shell in (RUNS, [section("post"), section("test")])
    )
    assert [c for c in ours if "apt-get" not in c] == [c for c in theirs if "apt-get" not in c]
    assert sum("pip install" in c and "--constraint constraints.txt" in c for c in ours) == 1
    assert apt_packages(RUNS) == apt_packages([section("post")])


def test_skias_libraries_are_the_makefiles() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    named = re.search(r"^SYSTEM_PACKAGES := (.+)$", makefile, re.MULTILINE)
    assert named
    graphics = re.compile(r"lib(egl|gl|gles|opengl|fontconfig)\d*")
    assert {name for name in apt_packages(RUNS) if graphics.fullmatch(name)} == set(named[1].split())


def test_both_begin_with_the_same_ubuntu_whose_python_will_do() -> None:
    (base,) = re.findall(r"^ARG BASE=docker\.io/library/ubuntu:(\S+)$", CONTAINERFILE, re.MULTILINE)
    assert re.findall(r"^From: ubuntu:(\S+)$", DEFINITION, re.MULTILINE) == [base]
    bounds = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["project"]["requires-python"])
    assert bounds
    assert (3, int(bounds[1])) <= UBUNTU_PYTHON[base] < (3, int(bounds[2]))
    assert "Python {}.{},".format(*UBUNTU_PYTHON[base]) in (REPOSITORY / "docs" / "containers.md").read_text()


def test_what_is_copied_is_there_and_is_all_of_the_package() -> None:
    files = [line.split() for line in section("files").splitlines() if line.strip()]
    assert all(target == f"/src/{source}" for source, target in files)
    sources = copied()
    assert sources == {source for source, _ in files}
    assert all((REPOSITORY / source).exists() for source in sources)
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert sources == {line[1:] for line in ignored if line.startswith("!")}
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    packed = {*wheel["packages"], *wheel["force-include"]}
    assert packed | {"pyproject.toml", PROJECT["project"]["readme"]} <= sources
    assert set(PROJECT["project"]["license-files"]) <= sources


@pytest.mark.parametrize("shell", SHELL)
def test_shell_is_well_formed(shell: str) -> None:
    done = subprocess.run(["bash", "-n"], input=shell, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_profile_and_docs_name_one_image() -> None:
    path = REPOSITORY / "slurm" / "profiles" / "container.yaml"
    container = yaml.safe_load(path.read_text())["container"]
    texts = [path.read_text(), (REPOSITORY / "docs" / "containers.md").read_text()]
    for text in texts:
        assert re.findall(r"enroot import -o (\S+) podman://(\S+)", text) == [
            (container["image"], "diffcore")
        ]
        assert "podman build -t diffcore -f containers/Containerfile ." in text
    # The job's interpreter is the one that the recipes let find the packages.
    assert all(
        f"{container['python']} -c 'import deepspeed" in recipe for recipe in (CONTAINERFILE, DEFINITION)
    )


UNPINNED = ("wandb", "mlflow", "bench")


def test_constraints_fit_the_project() -> None:
    from packaging.requirements import Requirement

    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned.items()}
    assert not [version for version in versions.values() if "+" in version]
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    # Neither make nor the container installs those, and mlflow-skinny wants an older importlib_metadata.
    wanted = chain(project["dependencies"], *(extras[name] for name in extras if name not in UNPINNED))
    for requirement in map(Requirement, wanted):
        if requirement.name == project["name"]:  # an extra made of others
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(versions[name]), f"{requirement}: {versions[name]} is pinned"
