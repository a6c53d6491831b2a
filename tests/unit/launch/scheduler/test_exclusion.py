"""Leaving nodes out of a requeued job, from inside the step that the requeue ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.scheduler import exclusion
from launch.scheduler.exclusion import left_out

# Requeueing has SIGTERM sent to all that the job runs; a job that is completing refuses once.
SCONTROL = """#!/bin/sh
cd "$(dirname "$0")"
case "$1" in
requeue)
    touch requeued
    sleep 0.3 ;;
update)
    sleep 0.5
    case "$3" in *gone*) echo "Invalid node name specified" >&2; exit 1 ;; esac
    [ -e refused ] || { touch refused; echo "Job is completing" >&2; exit 1; }
    echo "${3#ExcNodeList=}" > excluded ;;
show)
    echo "JobId=7 JobState=PENDING ExcNodeList=$(cat excluded 2>/dev/null || echo '(null)') Requeue=1" ;;
esac
"""

ASKING = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *about: None)  # as a supervisor: it notes it
from launch.scheduler import exclusion
print(exclusion.requeue("7") or "queued")
unshielded = subprocess.run(["scontrol", "update", "JobId=7", "ExcNodeList=n9"]).returncode
print(unshielded, exclusion.leave_out("7", sys.argv[1].split(","), 8.0))
"""


def terminate(mark: str) -> None:
    """SIGTERM to every process whose environment has ``mark``."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGTERM)


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    for name, text in (("scontrol", SCONTROL), ("sinfo", "#!/bin/sh\necho n1; echo n2; echo n3\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_the_exclusion_outlives_the_signal_of_its_own_requeue(commands: Path) -> None:
    env = os.environ | {"PATH": f"{commands}:/usr/bin:/bin", "IN_JOB": str(commands)}
    # fmt: off
    asking = subprocess.Popen(
        [sys.executable, "-c", ASKING, "n2,n3"], env=env, text=True, stdout=subprocess.PIPE
    )
    # fmt: on
    until = time.monotonic() + 60
    while asking.poll() is None and time.monotonic() < until:
        if (commands / "requeued").exists():
            terminate(f"IN_JOB={commands}")
        time.sleep(0.02)
    asking.kill()
    said = asking.communicate()[0]
    # The control: a command that does not ignore SIGTERM is ended by it.
    assert said.split() == ["queued", "-15", "True"]
    assert (commands / "excluded").read_text() == "n2,n3\n"


def test_a_name_that_slurm_does_not_know_keeps_no_other_in(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.setattr(exclusion, "AGAIN", 0.0)
    assert exclusion.leave_out("7", ["gone", "n2"])
    assert (commands / "excluded").read_text() == "n2\n"
    assert exclusion.leave_out("7", ["gone"])  # nothing is left to leave out


def test_what_slurm_does_not_confirm_is_told(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    (commands / "scontrol").write_text("#!/bin/sh\n[ $1 = requeue ] && echo no such job >&2; exit 1\n")
    assert not exclusion.leave_out("7", ["n2"], 0.1)
    assert exclusion.requeue("7") == "no such job"


@given(st.sets(st.integers(0, 99), max_size=9))
def test_node_lists_are_read_back(numbers: set[int]) -> None:
    names = {f"n{number}" for number in numbers}
    for text in (",".join(sorted(names)), f"n[{','.join(map(str, sorted(numbers)))}]"):
        assert left_out(f"JobId=7 ReqNodeList=n1 ExcNodeList={text} Dependency=x") == (
            names if names else set()
        )
    assert left_out("JobId=7 ExcNodeList=(null) X=1") == set() == left_out("")
