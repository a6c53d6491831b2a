"""Two people on one Slurm at the same time, and the cores and threads that a rank gets."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.box.checkout import Checkout, make_checkout
from tests.integration.box.conftest import REPOSITORY, RunningBox, box_py, why_not
from tests.support import numerics

NOBODY = 65534
AS_NOBODY: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
COLLEAGUES = 54322
COLLEAGUE: dict[str, Any] = AS_NOBODY | {"extra_groups": [COLLEAGUES]}
LIBRARIES = {"PYTHONPATH": sysconfig.get_path("purelib")}


@pytest.fixture(scope="module")
def box() -> Iterator[RunningBox]:
    """A box that every user of this machine reaches, which binds tasks to their cores."""
    if reason := why_not():
        pytest.skip(reason)
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core: none to choose from")
    folder = Path(tempfile.mkdtemp(prefix="people-"))  # pytest's own folders are closed to other users
    folder.chmod(0o755)
    try:
        options = ["--nodes", "2", "--gpus", "0", "--cpus", "2", "--bind", "--no-accounting"]
        box_py("up", *options, "--dir", str(folder / "box"))
        yield RunningBox(folder / "box")
    finally:
        box_py("down", "--dir", str(folder / "box"))
        shutil.rmtree(folder)


def checkout(name: str, box: RunningBox, packed: Path, **options: Any) -> Checkout:
    """Beside the box, with a scratch that all share."""
    folder = box.folder.parent
    data, scratch = folder / "packed", folder / "scratch"
    if not data.exists():
        shutil.copytree(packed, data)
        data.chmod(0o755)
        scratch.mkdir()
        scratch.chmod(0o1777)
    made = make_checkout(folder / name, box, data, **options)
    made.left_out.append("OMP_NUM_THREADS")  # what the shell says would go before the allocation
    profile = made.folder / "slurm" / "profiles" / "box.yaml"
    tree = yaml.safe_load(profile.read_text())
    profile.write_text(yaml.safe_dump(tree | {"scratch": str(scratch), "srun": ["--cpu-bind=cores"]}))
    return made


def other_users_python() -> str:
    """A Python with the toolkit's libraries that nobody may run: a virtual environment may lie in a home."""
    code = f"import sys, submitit, pydantic, yaml; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            done = subprocess.run(
                [python, "-c", code], env=LIBRARIES, cwd="/", capture_output=True, **AS_NOBODY
            )
        except OSError:
            continue
        if done.returncode == 0:
            return python
    pytest.skip("no Python here that another user may run")


def test_two_users_share_the_nodes_and_nothing_else(box: RunningBox, packed: Path) -> None:
    python = other_users_python()
    mine = checkout("mine", box, packed)
    theirs = checkout("theirs", box, packed, python=python, user=NOBODY, variables=dict(LIBRARIES))
    for path in [theirs.folder, *theirs.folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    both = (mine, theirs)
    jobs = []
    for one in both:
        one.acts(attempt_0=["hold"])
        jobs.append(one.job("--nodes", "2"))
    ours, others = (one.until_trained(2) for one in both)

    # At the same time, on the same two nodes.
    assert [box.state(job) for job in jobs] == ["RUNNING", "RUNNING"]
    assert ours[0]["MASTER_PORT"] != others[0]["MASTER_PORT"]
    for pair in zip(ours, others, strict=True):
        scratch = [Path(rank["SLURM_TMPDIR"]) for rank in pair]
        assert scratch[0] != scratch[1]
        assert [path.stat().st_uid for path in scratch] == [0, NOBODY]
        assert {stat.S_IMODE(path.stat().st_mode) for path in scratch} == {0o700}
        assert sorted(rank["cores"] for rank in pair) == [[0], [1]]
    for one, job in zip(both, jobs, strict=True):
        (one.folder / "go").touch()
        assert one.until_over(job) == "COMPLETED"
    assert list((box.folder.parent / "scratch").iterdir()) == []

    # Run folder and submitit's pickles are their owner's alone.
    for one, owner in ((mine, 0), (theirs, NOBODY)):
        paths = [one.run, *one.run.rglob("*")]
        assert [p.name for p in paths if p.suffix == ".pkl"]
        assert {path.stat().st_uid for path in paths} == {owner}
        assert [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    pickle = next(mine.run.glob("job/001/*_submitted.pkl"))
    assert subprocess.run(["cat", str(pickle)], capture_output=True, **AS_NOBODY).returncode


def test_a_colleague_reads_a_group_run_and_changes_nothing(box: RunningBox, packed: Path) -> None:
    """A real training of two nodes, submitted twice: the second time without a word of who may read."""
    python = other_users_python()
    owner = checkout("owner", box, packed)
    shutil.copyfile(REPOSITORY / "diffcore" / "train.py", owner.folder / "diffcore" / "train.py")
    text = numerics.CONFIG.replace("PACKED", str(box.folder.parent / "packed"))
    (owner.folder / "small.yaml").write_text(text)
    project = owner.folder / "project"
    project.mkdir()
    os.chown(project, -1, COLLEAGUES)
    project.chmod(0o2755)
    run = project / "run"
    arguments = ("--nodes", "2", "--no-preflight", "--run", str(run))
    for more in (("--run_access", "group", "--train.steps", "2"), ("--train.steps", "4")):
        job = owner.job(*arguments, *more)
        assert owner.until_over(job, 200) == "COMPLETED"

    def ask(person: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(owner.folder), LIBRARIES["PYTHONPATH"]])
        env = {**box.env, "PYTHONPATH": path, "HOME": "/nonexistent"}
        command = [python, "-m", "launch.jobs", *words]
        return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=60, **person)

    status = ask(COLLEAGUE, "status", str(run))
    assert status.returncode == 0 and "done" in status.stdout, status.stderr
    for rank in ("0", "1"):
        logs = ask(COLLEAGUE, "logs", str(run), "--rank", rank)
        assert logs.returncode == 0 and logs.stdout, logs.stderr
    scalars = subprocess.run(
        ["cat", *map(str, run.glob("**/*tfevents*"))], capture_output=True, cwd="/", **COLLEAGUE
    )
    assert scalars.returncode == 0 and b"loss" in scalars.stdout
    assert ask(AS_NOBODY, "status", str(run)).returncode != 0

    def those(test: str, person: dict[str, Any]) -> set[Path]:
        done = subprocess.run(["find", run, test], capture_output=True, text=True, cwd="/", **person)
        return {Path(line) for line in done.stdout.splitlines()}

    assert those("-writable", COLLEAGUE) == those("-readable", AS_NOBODY) == set()
    readable = those("-readable", COLLEAGUE)
    for job_folder in run.glob("job/[0-9]*"):
        names = {path.name for path in job_folder.iterdir() if path in readable}
        assert names and all(name.endswith(("_log.out", "_log.err")) for name in names), names
    steps = [path.parent.name for path in readable if path.name == "COMPLETE"]
    assert steps and not [path for path in readable if path.name.startswith(".")]


def test_cores_and_threads_are_the_allocations(box: RunningBox, packed: Path) -> None:
    narrow, wide = (checkout(name, box, packed) for name in ("narrow", "wide"))
    narrow_job = narrow.job("--tasks-per-node", "2")
    wide_job = wide.job("--cpus-per-task", "2")
    assert {narrow.until_over(narrow_job), wide.until_over(wide_job)} == {"COMPLETED"}
    ranks, (broad,) = narrow.until_trained(2), wide.until_trained(1)
    assert sorted(rank["cores"] for rank in ranks) == [[0], [1]]
    assert {rank["OMP_NUM_THREADS"] for rank in ranks} == {"1"}
    assert (broad["cores"], broad["OMP_NUM_THREADS"]) == ([0, 1], "2")


def test_a_strangers_folders_are_not_submitted_from(box: RunningBox, packed: Path) -> None:
    """He made ``run`` and ``run/job`` before, open to all, and waits for the pickle to swap it."""
    victim = checkout("victim", box, packed)
    shared = box.folder.parent / "scratch"
    bait = shared / "bait"
    made = f"umask 0; mkdir -p {bait}/job"
    subprocess.run(["sh", "-c", made], check=True, **AS_NOBODY)
    done = subprocess.run(
        victim.command("--run", str(bait)), cwd="/", env=victim.env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {bait} belongs to nobody: allowed is a folder of your own\n"
    assert [path.name for path in bait.rglob("*")] == ["job"]


def test_a_pickle_that_a_stranger_could_change_is_not_loaded(box: RunningBox, packed: Path) -> None:
    """While the job waits in the queue its folder is opened to others."""
    victim = checkout("careless", box, packed)
    blocker = box.sbatch("sleep 600", "-N2", "--exclusive")
    try:
        job = victim.job("--nodes", "1")
        victim.run.chmod(0o777)
    finally:
        box.run("scancel", blocker)
    assert victim.until_over(job) == "FAILED"
    log = next(victim.run.glob(f"job/001/{job}_0_log.out")).read_text()
    assert "run above it can be written by everybody" in log and not victim.events("start")
