"""The toolkit as people install it: a wheel from the sdist, alone in an environment, in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from diffbase.version import VERSION
from tests.integration.conftest import REPOSITORY, Finished, run

IMPORT_NAMES = {"diffbase", "shards", "diffcore", "launch"}
CALIBRATIONS = REPOSITORY / "diffcore" / "memory" / "calibrations"
PRETRAINED = "diffcore/runs/pretrained/tried.safetensors"
SMALL = [
    "--model.channels", "8,16", "--model.attention_levels", "1", "--train.steps", "2", "--batch.size", "4",
    "--sampling.steps", "2", "--sampling.count", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of the files git tracks, and the wheel that was built from it."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, os.fsdecode(listed).split("\0")):
        if (REPOSITORY / name).exists():  # not removed since
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((REPOSITORY / name).read_bytes())
    (clone / PRETRAINED).write_bytes(b"weights")
    done = run([sys.executable, "-m", "build", "--outdir", str(out), str(clone)], cwd=clone, timeout=300)
    assert done.code == 0, done.out + done.err
    return out


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and the dependencies, but without this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    installed = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    # As a path, not as a folder of packages: the checkout's own .pth file there is not read.
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    interpreter = folder / "bin" / "python"
    command = [interpreter, "-m", "pip", "install", "--no-deps", "--force-reinstall", "--quiet"]
    subprocess.run([*command, *built.glob("*.whl")], check=True, timeout=120)
    return interpreter


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, with a new HOME beside it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "PYTHONPATH", "DIFFCORE_PROFILES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "work"


def test_the_sdist_is_whole_and_the_wheel_has_its_names(built: Path) -> None:
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        inside = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    wanted = ("configs/demo.yaml", "slurm/box.py", "docs/slurm.md", "tests/unit/test_house.py", "Makefile",
              "benchmarks/render.py", "README.md", "LICENSE", ".ci/run")  # fmt: skip
    assert set(wanted) <= inside
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == IMPORT_NAMES | {f"diffcore-{VERSION}.dist-info"}
    shipped = {name.removeprefix("diffbase/_shipped/") for name in names if "/_shipped/" in name}
    for folder in ("configs", "slurm/profiles"):
        files = {
            p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / folder).rglob("*") if p.is_file()
        }
        assert files <= shipped
    calibrations = {f"diffcore/memory/calibrations/{path.name}" for path in CALIBRATIONS.glob("*.json")}
    assert calibrations and {
        "diffbase/page/kit.j2", "diffbase/page/timeline.js.j2", PRETRAINED, *calibrations
    } <= set(names)  # fmt: skip


def test_every_step_away_from_a_checkout(python: Path, place: Path) -> None:
    command = python.with_name("diffcore")

    def diffcore(*words: str | Path) -> Finished:
        done = run([str(command), *map(str, words)], cwd=place, timeout=240)
        assert done.code == 0, done.out + done.err
        return done

    assert diffcore("--version").out == f"diffcore {VERSION}\n"
    diffcore("render", "--out", "data/avatars", "--count", "40", "--quiet")
    packed = json.loads(diffcore("pack", "data/avatars", "--out", "data/demo", "--size", "32", "--json").out)
    assert sum(packed["samples"].values()) == 40
    diffcore("verify", "data/demo", "--quiet")

    # A shipped config by its name: its data/ and runs/ are this folder's.
    diffcore("train", "--config", "demo", *SMALL)
    record = json.loads((place / "runs" / "demo" / "run.json").read_text())
    assert record["code"] == f"diffcore {VERSION}"
    drawn = diffcore("sample", "runs/demo", "--samples", "2", "--out", "two.png", "--json")
    assert json.loads(drawn.out)["images"] == 2 and (place / "two.png").exists()

    plan = json.loads(diffcore("plan", "--config", "avatar", "--zero", "2", "--world", "8", "--json").out)
    assert plan["planned"][0]["parameters"] == 70_126_595

    dry = ["--cluster", "plain-gpu", "--nodes", "2", "--dry-run", "--run", "runs/dry"]
    text = diffcore("submit", "--config", "demo", *dry).out
    assert "#SBATCH --nodes=2" in text

    ranks = ["--tasks-per-node", "2", "--follow", "--run", "runs/local"]
    diffcore("submit", "--config", "demo", "--cluster", "local", *ranks, *SMALL)
    run_folder = place / "runs" / "local"
    assert (run_folder / "checkpoints" / "step-00000002" / "COMPLETE").exists()
    # The job ran its own copy of the installed packages, which says what it is a copy of.
    code = run_folder / "job" / "001" / "code"
    assert (code / "VERSION").read_text() == f"diffcore {VERSION}\n"
    assert {path.name for path in code.iterdir()} == {*IMPORT_NAMES, "VERSION"}
    assert diffcore("jobs", "status", "runs/local", "--json").out.count('"COMPLETED"') == 1


def test_configs_by_name_and_by_extends(python: Path, place: Path) -> None:
    (place / "mine.yaml").write_text("extends: demo\nrun: here\noptimizer: {lr: 0.5}\n")
    code = (
        "from pathlib import Path; from diffcore.config.configure import load; c = load(Path('mine.yaml'));"
        "print(c.run, c.data.path, c.optimizer.lr, c.engine.json_path.read_text()[:1])"
    )
    done = run([str(python), "-c", code], cwd=place)
    assert done.out.split() == [str(place / "here"), str(place / "data" / "demo"), "0.5", "{"], done.err


def test_profiles_of_the_site_and_of_the_user(
    python: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, site = Path(os.environ["HOME"]) / ".config" / "diffcore" / "profiles", place / "site"
    for folder, partition in ((home, "users"), (site, "sites")):
        folder.mkdir(parents=True)
        (folder / "ours.yaml").write_text(f"partition: {partition}\n")
    (home / "plain-gpu.yaml").write_text("partition: mine\n")

    def partition(name: str) -> str:
        code = f"from launch.ask import profile; print(profile.choose({name!r}).partition)"
        return run([str(python), "-c", code], cwd=place).out.strip()

    assert [partition("ours"), partition("plain-gpu"), partition("infiniband")] == ["users", "mine", "h100"]
    monkeypatch.setenv("DIFFCORE_PROFILES", f"{place / 'none'}:{site}")
    assert [partition("ours"), partition("plain-gpu")] == ["sites", "mine"]


@pytest.mark.parametrize(
    ("package", "words", "line"),
    [
        (
            "skia",
            ["render", "--out", "a", "--count", "1"],
            "drawing avatars needs skia: pip install 'diffcore[render]'",
        ),
        (
            "diffusers",
            ["plan", "--config", "diffusers-8"],
            "model.kind diffusers needs diffusers: pip install 'diffcore[diffusers]'",
        ),
    ],
)
def test_a_missing_extra_is_one_line(
    python: Path, place: Path, package: str, words: list[str], line: str
) -> None:
    hide = f"import sys; sys.modules[{package!r}] = None; from diffcore.__main__ import script; "
    code = hide + f"sys.argv[1:] = {words!r}; script()"
    done = run([str(python), "-c", code], cwd=place)
    assert done.code == 2 and done.err.splitlines()[-1] == f"error: {line}"
