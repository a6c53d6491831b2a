"""Whatever names and values a profile, a config and the flags hold, the sbatch file runs nothing of them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.files import REPOSITORY, path_of
from launch import submit
from launch.ask.profile import Cluster
from launch.ask.spec import JobSpec
from launch.job.code import by_name
from launch.job.sbatch import Sbatch, python_path

CONFIG = str(REPOSITORY / "configs" / "demo.yaml")
SHELL = [
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned #",
    "'; touch pwned; '",
    '"',
    "\\",
    "a b",
    "&",
    "|x",
    ">y",
]
BREAKS = ["\n", "\r", "\0", "\x1b[2J", "\u2028", "\x85", "\ud800"]
WORDS = st.one_of(
    st.sampled_from(SHELL),
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Cf")), min_size=1, max_size=20),
)
SRUN = '#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done > "$SAID"\n'


def spec_of(given: dict[str, Any], **more: Any) -> JobSpec:
    cluster = validated(Cluster, {"name": "x"} | given, "profile")
    size = {
        "job": "x",
        "nodes": 1,
        "nodes_min": 1,
        "tasks_per_node": 2,
        "gpus_per_node": 2,
        "cpus_per_task": 1,
    }
    return validated(JobSpec, {"cluster": cluster, "minutes": 60, **size, **more}, "job")


@settings(max_examples=60)
@given(words=st.lists(WORDS, min_size=9, max_size=9), folder=WORDS)
def test_nothing_of_a_value_is_executed(words: list[str], folder: str) -> None:
    names = ("partition", "account", "qos", "constraint", "python")
    tree: dict[str, Any] = dict(zip(names, words, strict=False))
    tree |= {"sbatch": {"comment": words[5]}, "srun": [words[6]]}
    spec = spec_of(tree, exclude=[words[7]])
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        run = root / folder.replace("/", "_").replace(".", "_") / "job" / "001"
        script, tools, here, said = (root / part for part in ("script", "tools", "here", "said"))
        for made in (tools, here):
            made.mkdir()
        script.write_text(Sbatch(spec, run, run / "code").text())
        (tools / "srun").write_text(SRUN)
        (tools / "srun").chmod(0o755)
        assert subprocess.run(["bash", "-n", script]).returncode == 0
        environment = {"PATH": f"{tools}:{os.defpath}", "SAID": str(said), "SLURM_RESTART_COUNT": "9999999"}
        done = subprocess.run(["bash", script], cwd=here, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert list(here.iterdir()) == []
        told = said.read_text().split("\0")
        assert words[6] in told and words[4] in told and str(run) in told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes somebody else's folder")
@pytest.mark.parametrize("way", ["folder", "link", "link of ours"])
@pytest.mark.parametrize("group", [False, True])
def test_a_run_folder_that_somebody_made_meanwhile_is_not_run_from(
    way: str, group: bool, tmp_path: Path
) -> None:
    run, srun, said = tmp_path / "a run", tmp_path / "srun", tmp_path / "said"
    script = Sbatch(spec_of({}, group=group), run / "job" / "001", run / "job" / "001" / "code").text()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.defpath}", "SAID": str(said), "SLURM_RESTART_COUNT": "9999999"}

    def job() -> tuple[int, str]:
        done = subprocess.run(
            ["bash"], input=script, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stderr

    run.mkdir()
    assert job() == (0, "") and said.exists()
    said.unlink()
    if way == "link":
        run.rmdir()
        run.symlink_to("/tmp")
    elif way == "link of ours":
        run.rename(tmp_path / "theirs")
        run.symlink_to("theirs")
    os.chown(run, 65534, 65534, follow_symlinks=way == "link of ours")
    told = (0, "") if group else (2, f"{run} belongs to somebody else: allowed is a folder of your own\n")
    assert job() == told and said.exists() == group


FIELDS: dict[str, Any] = {
    "partition": lambda text: {"partition": text},
    "account": lambda text: {"account": text},
    "qos": lambda text: {"qos": text},
    "constraint": lambda text: {"constraint": text},
    "name": lambda text: {"name": text},
    "gpus.type": lambda text: {"gpus": {"type": text}},
    "network.interface": lambda text: {"network": {"interface": text}},
    "network.env": lambda text: {"network": {"env": {"X": text}}},
    "network.env's name": lambda text: {"network": {"env": {text: "x"}}},
    "env": lambda text: {"env": {"X": text}},
    "env's name": lambda text: {"env": {text: "x"}},
    "container.image": lambda text: {"container": {"image": text}},
    "container.mounts": lambda text: {"container": {"image": "x", "mounts": [text]}},
    "container.python": lambda text: {"container": {"image": "x", "python": text}},
    "sbatch": lambda text: {"sbatch": {"comment": text}},
    "sbatch's name": lambda text: {"sbatch": {text: "x"}},
    "srun": lambda text: {"srun": [text]},
    "setup": lambda text: {"setup": [text]},
    "python": lambda text: {"python": text},
    "scratch": lambda text: {"scratch": text},
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("mark", BREAKS, ids=ascii)
def test_a_profile_holds_lines(field: str, mark: str) -> None:
    with pytest.raises(InputError) as error:
        spec_of(FIELDS[field](f"a{mark}touch pwned"))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["a=b", "", "1a", "a b", "é", "$(x)"])
def test_a_variables_name_is_one(name: str) -> None:
    with pytest.raises(InputError, match=r"env"):
        spec_of({"env": {name: "x"}})


FLAGS = ["--run", "--name", "--partition", "--account", "--qos", "--constraint", "--exclude", "--data.path"]


@pytest.mark.parametrize("flag", [*FLAGS, "--cluster", "--time", "--after", "--config", "--sweep", "--nodes"])
@pytest.mark.parametrize("mark", ["\n", "\x1b", "\udcff"], ids=ascii)
def test_a_flag_is_a_line(flag: str, mark: str) -> None:
    with pytest.raises(InputError, match=r"which is not allowed: one line of text"):
        submit.main(["--dry-run", "--config", CONFIG, "--cluster", "box", flag, f"a{mark}touch pwned"])


@pytest.mark.parametrize(
    "flag", ["--time", "--nodes", "--cpus-per-task", "--restarts", "--parallel", "--seed"]
)
@pytest.mark.parametrize("value", ["9" * 5000, "9" * 30, "nan", "-1"])
def test_a_size_is_a_number_in_its_range(flag: str, value: str) -> None:
    with pytest.raises(InputError) as error:
        submit.main(["--dry-run", "--config", CONFIG, "--cluster", "box", f"{flag}={value}"])
    assert len(str(error.value)) < 700


def test_a_runs_name_is_made_a_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    submit.main(["--dry-run", "--config", CONFIG, "--cluster", "box", "--run", "runs/é $(x)" + "y" * 100])
    assert "#SBATCH --job-name=run----x-y" in capsys.readouterr().out


def test_a_path_has_its_user_and_names_that_can_be() -> None:
    for text in ("~nosuchuser/x", "", "a\0b", "x" * 256, "x/" * 3000):
        with pytest.raises(InputError, match=r"^run"):
            path_of(text, "run")
    assert path_of("~/x", "run") == Path.home() / "x"


class Batch:
    """A job's batch script whose srun ends with a code of choice; Slurm has the job as running."""

    def __init__(self, root: Path, **more: Any) -> None:
        self.run, self.said = root / "a run", root / "said"
        folder = self.run / "job" / "001"
        folder.mkdir(parents=True)
        self.script = Sbatch(spec_of({}, **more), folder, folder / "code").text()
        self.tools = root / "tools"
        self.tools.mkdir()
        for name, text in {"srun": SRUN_THAT_ENDS, "scontrol": SCONTROL}.items():
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)

    def requeues(self, code: int, restart: int = 0, *, writes: bool = False) -> bool:
        """Whether the job is queued again. ``writes``: the run's ledger is written in this life."""
        ledger = self.run / "events.jsonl"
        if ledger.exists():
            os.utime(ledger, (0, 0))
        environment = {
            "PATH": f"{self.tools}:{os.defpath}",
            "CODE": str(code),
            "SAID": str(self.said),
            "LEDGER": str(ledger) if writes else "/dev/null",
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restart),
        }
        self.said.unlink(missing_ok=True)
        done = subprocess.run(["bash"], input=self.script, env=environment, cwd=self.run, text=True)
        assert done.returncode == code
        return self.said.exists()


SRUN_THAT_ENDS = '#!/bin/sh\ntouch "$LEDGER"\nexit "$CODE"\n'
SCONTROL = """#!/bin/sh
case "$1" in
  show) echo "JobId=7 JobState=RUNNING Requeue=1 Restarts=$SLURM_RESTART_COUNT BatchFlag=1" ;;
  requeue) touch "$SAID" ;;
esac
"""


ENDS = dict.fromkeys((0, 1, 2, 126, 127), False) | dict.fromkeys((75, 85), True)


@pytest.mark.parametrize(("code", "wanted"), ENDS.items())
def test_what_the_ranks_ended_with_decides_whether_the_job_is_queued_again(
    code: int, wanted: bool, tmp_path: Path
) -> None:
    batch = Batch(tmp_path)
    assert {batch.requeues(code, restart) for restart in (0, 21, 500)} == {wanted}


def test_a_srun_that_fails_again_and_again_ends_the_job(tmp_path: Path) -> None:
    batch = Batch(tmp_path, restarts=3)
    assert [batch.requeues(143, restart) for restart in range(5)] == [True] * 3 + [False] * 2


def test_lives_that_trained_are_not_counted_with_those_that_did_not_start(tmp_path: Path) -> None:
    """A job of weeks has been started a hundred times when a node does not start its tasks."""
    batch = Batch(tmp_path, restarts=3)
    assert all(batch.requeues(137, 100 + k, writes=True) for k in range(5))
    assert [batch.requeues(143, 105 + k) for k in range(3)] == [True] * 3
    assert batch.requeues(75, 108)
    assert [batch.requeues(143, 109 + k) for k in range(4)] == [True] * 3 + [False]


@pytest.mark.parametrize(
    "profile", [{"srun": ["--gpu-bind=single:1"]}, {"sbatch": {"gpu-bind": "single:1"}}, {}]
)
def test_a_nodes_supervisor_sees_all_its_gpus(profile: dict[str, Any]) -> None:
    text = Sbatch(spec_of(profile), Path("/r/job/001"), Path("/r/job/001/code")).text()
    (srun,) = [line.split() for line in text.splitlines() if line.startswith("srun")]
    bound = [word for word in srun if word.startswith("--gpu-bind")]
    assert bound[-1:] == (["--gpu-bind=none"] if profile else [])  # the last one counts


PRINTED = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Cf"), exclude_characters="/\\")
NAMES = st.text(PRINTED, min_size=1, max_size=20).filter(lambda name: name not in (".", ".."))


def read_by_sbatch(line: str) -> str:
    """A word of an #SBATCH line as Slurm reads it: a backslash escapes what follows, inside quotes too."""
    word, quote, characters = "", "", iter(line)
    for one in characters:
        if one == "\\":
            word += next(characters)
        elif one == quote:
            quote = ""
        elif not quote and one in "'\"":
            quote = one
        elif not quote and (one.isspace() or one == "#"):
            break
        else:
            word += one
    return word


PATTERNS = {"%": "%", "A": "7", "a": "2"}


def named_by_slurm(pattern: str, job: str) -> str:
    """A file's name as Slurm makes it of a pattern."""
    return re.sub("%(.)", lambda found: {"%": "%", "j": job}[found[1]], pattern)


@settings(max_examples=100)
@example(folder="%t", comment="")
@example(folder="a%j_%t_log.out %%A", comment="%j")
@given(folder=NAMES, comment=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=9))
def test_slurm_reads_names_as_they_are(folder: str, comment: str) -> None:
    run = Path("/runs") / folder
    text = Sbatch(spec_of({"sbatch": {"comment": comment}}), run / "job/001", run / "job/001/code").text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.M))
    assert read_by_sbatch(options["comment"]) == comment
    log = f"{run}/job/001/7_0_log.out"
    assert named_by_slurm(read_by_sbatch(options["output"]), "7") == log
    (srun,) = [shlex.split(line) for line in text.split("\n") if line.startswith("srun ")]
    assert named_by_slurm(srun[srun.index("--output") + 1], "7") == log
    assert f"{run}/job/001" in srun
    sweep = Sbatch(spec_of({}), run / "job/001", run / "job/001/code").text(array=3)
    [output] = re.findall(r"^#SBATCH --output=(.*)$", sweep, re.M)
    named = re.sub("%(.)", lambda found: PATTERNS[found[1]], read_by_sbatch(output))
    assert named == f"{run}/job/001/7_2_0_log.out"


@settings(max_examples=20, deadline=None)
@given(folder=st.one_of(NAMES, NAMES.map(lambda name: f"a:{name}")))
def test_a_copy_of_the_code_is_run_whatever_its_folders_name(folder: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        code = Path(root) / folder
        (code / "pack").mkdir(parents=True)
        (code / "pack/__init__.py").write_text("")
        (code / "pack/said.py").write_text("import sys\nprint(__name__, sys.argv[1:])\n")
        path = {"PYTHONPATH": ":".join(python_path(code)), "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-S", *by_name("pack.said", code), "a b"]
        done = subprocess.run(command, env=path, capture_output=True, text=True)
        assert done.stdout == "__main__ ['a b']\n", done.stderr


@pytest.mark.parametrize("name", ["naïve-été", "project:run", "50% [a] #1", "日本"])
def test_a_jobs_name_is_what_slurm_takes(name: str) -> None:
    text = Sbatch(spec_of({}, job=name), Path("/r/job/001"), Path("/r/job/001/code")).text()
    (line,) = re.findall(r"^#SBATCH --job-name=(.*)$", text, re.M)
    assert read_by_sbatch(line) == name


@pytest.mark.parametrize("name", ["", " a", "a'b", 'a"b', "a|b", "a\\b", "a\nb", "x" * 101])
def test_what_slurm_would_change_is_no_jobs_name(name: str) -> None:
    with pytest.raises(InputError, match="job"):
        spec_of({}, job=name)
