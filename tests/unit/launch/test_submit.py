"""The command line: whole sbatch files against golden ones, mistakes in one line, nothing heavy loaded."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from launch import submit
from launch.ask import profile as cluster
from launch.ask.spec import parse_minutes, parse_nodes
from launch.hand_over import local, submission
from launch.job import folder as snapshot
from launch.job import registry
from launch.job.code import copy_code
from launch.job.sbatch import Sbatch

GOLDEN = REPOSITORY / "tests" / "golden"
CONFIG = str(REPOSITORY / "configs" / "demo-adamw.yaml")

CASES = {
    "box-2x2": ["--cluster", "box", "--nodes", "2", "--gpus-per-node", "2"],
    "box-range": ["--cluster", "box", "--nodes", "1-2", "--tasks-per-node", "2", "--time", "1:30:00"],
    "plain-gpu": ["--cluster", "plain-gpu", "--nodes", "2", "--gpus-per-node", "4", "--after", "77"],
    "infiniband": ["--cluster", "infiniband", "--nodes", "1", "--gpus-per-node", "8", "--exclude", "x1,x2"],
    "container": ["--cluster", "container", "--nodes", "2", "--gpus-per-node", "4", "--partition", "other"],
    "sweep": ["--cluster", "plain-gpu", "--gpus-per-node", "4", "--sweep", "SWEEP", "--parallel", "2"],
}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    submit.main(["--config", CONFIG, "--run", "/runs/demo", "--dry-run", *arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", CASES)
def test_sbatch_files_are_as_they_were(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("optimizer.lr: [1.0e-4, 3.0e-4]\nmodel.heads: [1, 2]\n")
    arguments = [str(sweep) if word == "SWEEP" else word for word in CASES[name]]
    text = printed(capsys, *arguments)
    path = GOLDEN / f"{name}.sbatch"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_golden_files_are_shell(name: str) -> None:
    assert subprocess.run(["bash", "-n", str(GOLDEN / f"{name}.sbatch")]).returncode == 0


DRY_RUN = ["--dry-run", "--cluster", "box", "--config", CONFIG, "--data.path", "nowhere"]


@pytest.mark.parametrize("arguments", [["--help"], DRY_RUN])
def test_a_login_node_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom launch import submit\n"
        "try: submit.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'deepspeed', 'diffusers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--nodse", "2"], "unknown argument '--nodse'; did you mean --nodes"),
        (["--cluster", "bxo"], "no profile 'bxo'; allowed: local, box"),
        (["--cluster", "box", "--nodes", "two"], "--nodes: 'two'; give a number"),
        (["--cluster", "box", "--nodes", "2-1"], "nodes 2-1 ends before it begins"),
        (["--cluster", "box", "--gpus-per-node", "2", "--tasks-per-node", "1"], "one rank a GPU"),
        (["--cluster", "box", "--time", "soon"], "--time: 'soon'"),
        (["--cluster", "plain-gpu", "--time", "3-0"], "the profile of plain-gpu allows 1440"),
        (["--cluster", "plain-gpu", "--time", "2"], "told to save 180 s before its end"),
        (["--cluster", "local", "--nodes", "2"], "cluster local is one machine"),
        (["--cluster", "local", "--after", "3"], "cluster local has no queue: --after would do nothing"),
        (["--cluster", "local", "--time", "5", "--qos", "x"], "--time and --qos would do nothing"),
        (["--cluster", "local", "--cpus-per-task", "2", "--queue"], "--cpus-per-task and --queue would do"),
        (["--cluster", "box", "--parallel", "2"], "--parallel is of a --sweep"),
        (["--cluster", "box", "--nodes", "5"], "batch.size 24 is not micro x accumulation x world"),
        (["--cluster", "box", "--after", "x"], "after"),
        (["--cluster", "box", "--model.headz", "3"], "unknown argument '--model.headz'"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], line: str) -> None:
    with pytest.raises(InputError) as error:
        submit.main(["--config", CONFIG, "--dry-run", *arguments])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "profile", "refused"),
    [
        ("50%j", "plain-gpu", None),
        ("50%j", "local", None),
        (r"a\b", "plain-gpu", "\\"),
        ("a,b", "container", ","),
        ("a:b", "container", ":"),
        ("a:b", "plain-gpu", None),
        ("a:b", "local", None),
        ("a,b c d", "plain-gpu", None),
    ],
)
def test_a_run_folder_is_a_name_and_no_pattern(
    tmp_path: Path, name: str, profile: str, refused: str | None
) -> None:
    command = ["--config", CONFIG, "--cluster", profile, "--nodes", "1", "--gpus-per-node", "1", "--dry-run"]
    command += ["--run", str(tmp_path / name)]
    if refused is None:
        submit.main(command)
    else:
        with pytest.raises(InputError, match=rf"run: .* has {re.escape(repr(refused))}: .*another folder"):
            submit.main(command)


def test_missing_shards_are_found_before_the_queue(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.json: not found; pack a data set with"):
        submit.main(["--config", CONFIG, "--cluster", "box", "--data.path", str(tmp_path)])


def test_a_dry_run_is_one_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    size = ["--cluster", "box", "--nodes", "1-2", "--tasks-per-node", "2"]
    text = printed(capsys, *size)
    found = printed(capsys, *size, "--json")
    tree = json.loads(found)
    assert found == json.dumps(tree, indent=1, sort_keys=True) + "\n"
    assert tree.pop("dry_run") == text
    assert tree == {
        "run": "/runs/demo", "name": "demo", "cluster": "box", "nodes": 2, "nodes_min": 1,
        "tasks_per_node": 2, "points": [],
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text("optimizer.lr: [1.0e-4, 3.0e-4]\n")
    tree = json.loads(printed(capsys, *size, "--json", "--sweep", str(tmp_path / "sweep.yaml")))
    assert tree["points"] == [
        {"run": "/runs/demo/000", "values": {"optimizer.lr": 1e-4}},
        {"run": "/runs/demo/001", "values": {"optimizer.lr": 3e-4}},
    ]
    assert printed(capsys, *size, "--quiet") == ""


@pytest.mark.parametrize("sweep", [False, True])
def test_a_submission_is_one_document(
    sweep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "check", lambda *arguments, **flags: None)  # there are no shards here
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 12\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    (tmp_path / "sweep.yaml").write_text("optimizer.lr: [1.0e-4, 3.0e-4]\n")
    run = tmp_path / "run"
    command = ["--config", CONFIG, "--run", str(run), "--cluster", "box", "--json", "--force"]
    submit.main([*command, *(["--sweep", str(tmp_path / "sweep.yaml")] if sweep else [])])
    tree = json.loads(capsys.readouterr().out)
    assert (tree["job"], tree["folder"]) == ("12", str(run / "job" / "001"))
    assert [point["job"] for point in tree["points"]] == (["12_0", "12_1"] if sweep else [])
    with pytest.raises(InputError, match="without --follow"):
        submit.main([*command, "--follow"])


def test_a_job_on_this_machine_is_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "check", lambda *arguments, **flags: None)
    monkeypatch.setattr(
        local.Local, "submit", lambda self, task: SimpleNamespace(job_id="77", state="RUNNING")
    )
    command = ["--config", CONFIG, "--run", str(tmp_path / "run"), "--cluster", "local", "--json", "--force"]
    handler = signal.getsignal(signal.SIGHUP)
    try:
        submit.main([*command, "--tasks-per-node", "1"])
    finally:
        signal.signal(signal.SIGHUP, handler)
    tree = json.loads(capsys.readouterr().out)
    assert (tree["job"], tree["cluster"], tree["tasks_per_node"]) == ("77", "local", 1)


def test_a_job_in_an_allocation_is_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "check", lambda *arguments, **flags: None)
    monkeypatch.setattr(Sbatch, "text", lambda self, *arguments: "echo of the steps; exit 3\n")
    monkeypatch.setenv("SLURM_JOB_ID", "88")
    command = ["--config", CONFIG, "--run", str(tmp_path / "run"), "--cluster", "box", "--json", "--force"]
    with pytest.raises(SystemExit) as left:
        submit.main(command)
    said = capfd.readouterr()
    assert left.value.code == 3 and json.loads(said.out)["job"] == "88" and "of the steps" in said.err


@pytest.mark.slow
def test_what_does_not_fit_the_gpus_is_not_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[int] = []
    monkeypatch.setattr(submit, "check", lambda *arguments, **flags: None)  # there are no shards here
    monkeypatch.setattr(submission, "submit", lambda points, *rest: submitted.append(len(points)))
    profile = tmp_path / "small.yaml"
    profile.write_text("gpus: {memory_gb: 1}\nmax_minutes: 60\n")
    (tmp_path / "sweep.yaml").write_text("optimizer.lr: [1.0e-4, 2.0e-4]\nbatch.size: [12, 12000]\n")
    command = ["--config", CONFIG, "--cluster", str(profile), "--run", str(tmp_path / "run")]
    command += ["--nodes", "1-2", "--gpus-per-node", "1"]
    with pytest.raises(InputError, match=r"1 GPUs of 1 GB \(gpus.memory_gb of small\): does not fit: .*MiB"):
        submit.main([*command, "--sweep", str(tmp_path / "sweep.yaml")])
    assert not submitted
    submit.main([*command, "--sweep", str(tmp_path / "sweep.yaml"), "--force"])
    assert submitted == [4]


def test_a_node_that_failed_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    registry.exclude("box", {"n7": "ECC"}, hours=1)
    registry.exclude("box", {"n8": "long ago"}, hours=-1)
    registry.exclude("other", {"n9": "elsewhere"}, hours=1)
    assert "#SBATCH --exclude=n1,n7\n" in printed(capsys, "--cluster", "box", "--exclude", "n1")
    assert registry.excluded("box") == {"n7": "ECC"}


# --- profiles ---


@pytest.mark.parametrize("name", cluster.profiles())
def test_every_profile_loads_and_says_its_command(name: str) -> None:
    assert cluster.choose(name).name == name
    assert f"--cluster {name}" in cluster.profiles()[name].read_text()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("partion: gpu", "unknown key 'partion' (did you mean 'partition'?); allowed here: name, partition"),
        ("gpus: {form: gress}", "gpus.form: Input should be 'gres', 'gpus-per-node' or 'none', got 'gress'"),
        ("network: {interfaces: a}", "unknown key 'network.interfaces' (did you mean 'interface'?)"),
        ("sbatch: {--mem: 3}", "write it without the leading dashes"),
        ("- a", "expected a mapping"),
        ("a: [", "not a YAML file"),
    ],
)
def test_a_wrong_profile_says_what_is_allowed(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(line)):
        cluster.load(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{python: /bin/python3, container: {image: x.sqsh}}", "python: in a container container.python"),
        ("{gpus: {form: none, type: a100}}", "gpus.type: gpus.form none"),
        ("{preflight: {mode: quick, floor_gbps: 5}}", "preflight.floor_gbps: preflight.mode full"),
    ],
)
def test_a_profile_says_nothing_that_does_nothing(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"mine.yaml: {line} .* would do nothing"):
        cluster.choose(str(path))
    assert cluster.load(path).name == "mine"  # a job's, which has it from before


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30:00", 90), ("2-0", 2880), ("1-12:30", 2190), ("10:01", 11), ("0-0:0:30", 1)],
)
def test_time_limits(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


def test_node_ranges() -> None:
    assert (parse_nodes("3"), parse_nodes("1-4")) == ((3, 3), (1, 4))


# --- the run folder ---


def test_the_snapshot_holds_tracked_files_only(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path / "repo"), *words], check=True, capture_output=True)

    repo = tmp_path / "repo"
    (repo / "diffcore").mkdir(parents=True)
    git("init")
    (repo / "diffcore" / "train.py").write_text("one")
    git("add", ".")
    (repo / "diffcore" / "train.py").write_text("two")  # as it is on the disk
    (repo / "diffcore" / "secret.py").write_text("not tracked")
    copy_code(tmp_path / "code", repo)
    files = sorted(p.relative_to(tmp_path / "code").as_posix() for p in (tmp_path / "code").rglob("*.py"))
    assert files == ["diffcore/train.py"]
    assert (tmp_path / "code" / "diffcore" / "train.py").read_text() == "two"


def test_the_snapshot_of_an_installation_has_what_ships(tmp_path: Path) -> None:
    kept = {"diffcore/train.py", "diffcore/runs/pretrained/a.safetensors", "diffcore/runs/pretrained/a.json"}
    for name in (*kept, "diffcore/notes.txt"):
        (tmp_path / "installed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "installed" / name).write_bytes(b"\0")
    copy_code(tmp_path / "code", tmp_path / "installed")
    code = tmp_path / "code"
    assert kept == {p.relative_to(code).as_posix() for p in (code / "diffcore").rglob("*") if p.is_file()}


def test_submissions_are_numbered_and_their_owners_alone(tmp_path: Path) -> None:
    first, second = snapshot.create(tmp_path / "run"), snapshot.create(tmp_path / "run")
    assert [first.folder.name, second.folder.name] == ["001", "002"]
    for folder in (first.run, first.folder.parent, first.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_no_secret_is_written_down() -> None:
    given = {
        "PATH": "/bin", "NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "2", "HF_TOKEN": "x", "WANDB_API_KEY": "x",
        "DIFFCORE_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x", "TORCH_HOME": "/t", "DS_PASSWORD": "x",
        "HTTPS_PROXY": "http://me:word@host", "NCCL_KEY": "x",
    }  # fmt: skip
    assert set(snapshot.allowed(given)) == {"PATH", "NCCL_DEBUG", "OMP_NUM_THREADS", "TORCH_HOME"}


@pytest.mark.parametrize("place", ["run", "run/job"])
@pytest.mark.parametrize("fault", ["all may write", "a stranger's"])
def test_folders_that_somebody_else_made_are_not_used(tmp_path: Path, place: str, fault: str) -> None:
    """He could put other code, or another pickle, in the place of what is submitted."""
    tmp_path.chmod(0o755)
    (tmp_path / "run" / "job").mkdir(parents=True)
    if fault == "all may write":
        (tmp_path / place).chmod(0o777)
    elif os.geteuid():
        pytest.skip("only root gives files away")
    else:
        os.chown(tmp_path / place, 65534, 65534)
    with pytest.raises(InputError, match=rf"{place}( above it)? (belongs to nobody|can be written by)"):
        snapshot.create(tmp_path / "run")
    assert not list((tmp_path / "run" / "job").iterdir())


def test_the_list_of_jobs_is_the_users_alone(tmp_path: Path) -> None:
    registry.remember(tmp_path / "run", "12", "box")
    assert [entry["job"] for entry in registry.submissions()] == ["12"]
    path = registry.path_of("jobs.jsonl")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(path.read_text() + '{"torn')
    assert len(registry.submissions()) == 1
    assert json.loads(path.read_text().splitlines()[0])["cluster"] == "box"


def test_of_a_family_only_known_variables_are_written_down_and_no_credentials() -> None:
    given = {
        "TORCH_URL": "https://u:p@h", "DIFFCORE_PWD": "x", "NCCL_SOME_PIN": "1234", "LC_X": "x", "DS_X": "x",
        "TORCH_HOME": "https://u:word@h/x?sig=abc", "PYTHONPATH": "/a:/b", "NCCL_DEBUG": "token=abcdef",
    }  # fmt: skip
    assert snapshot.allowed(given) == {
        "TORCH_HOME": "https://h/x?***", "PYTHONPATH": "/a:/b", "NCCL_DEBUG": "token=***",
    }  # fmt: skip
