"""A checkout of the toolkit whose training is fake_job's script, which submits to a box."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from diffbase import ledger
from tests.integration.box.conftest import REPOSITORY, RunningBox, wait_for
from tests.integration.fake_job import SCRIPT


@dataclass
class Checkout:
    """A checkout of the toolkit whose training is ``SCRIPT``, and the box that it submits to."""

    folder: Path
    box: RunningBox
    python: str = sys.executable
    user: int | None = None
    """Another user of the machine, who submits; None: the one who runs the tests."""
    variables: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Variables that the one who submits does not have."""

    @property
    def env(self) -> dict[str, str]:
        own = {"ACTS": str(self.folder), "XDG_STATE_HOME": str(self.folder / "state")}
        all_of_them = self.box.env | own | self.variables
        return {name: value for name, value in all_of_them.items() if name not in self.left_out}

    def acts(self, **acts: list[Any]) -> None:
        tree = {key.removeprefix("attempt_").replace("_", "."): act for key, act in acts.items()}
        (self.folder / "acts.json").write_text(json.dumps(tree))

    def command(self, *arguments: str) -> list[str]:
        submit = str(self.folder / "launch" / "submit.py")
        return [
            self.python,
            submit,
            "--config",
            str(self.folder / "small.yaml"),
            "--cluster",
            "box",
            *arguments,
        ]

    def submit(self, *arguments: str) -> str:
        """The printed text of a submission that went well."""
        who: dict[str, Any] = {}
        if self.user is not None:
            who = {"user": self.user, "group": self.user, "extra_groups": []}
        command = self.command(*arguments)
        done = subprocess.run(
            command, cwd="/", env=self.env, capture_output=True, text=True, timeout=120, **who
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def job(self, *arguments: str) -> str:
        match = re.match(r"job (\d+)", text := self.submit(*arguments))
        assert match, text
        return match[1]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def events(self, kind: str, run: Path | None = None) -> list[dict[str, Any]]:
        return [event for event in ledger.events(run or self.run) if event["event"] == kind]

    def until_trained(self, ranks: int) -> list[dict[str, Any]]:
        """Wait until every rank of attempt 0 acts; what each of them saw."""
        paths = [self.folder / f"seen-0-{rank}.json" for rank in range(ranks)]
        wait_for(lambda: all(path.exists() and path.read_text().endswith("}") for path in paths))
        return [json.loads(path.read_text()) for path in paths]

    def until_over(self, job: str, seconds: float = 90) -> str:
        """Its state in the end."""
        wait_for(lambda: self.box.state(job) not in ("PENDING", "RUNNING", "COMPLETING"), seconds)
        return self.box.state(job)


def make_checkout(folder: Path, box: RunningBox, data: Path, **options: Any) -> Checkout:
    """``options``: of Checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if name and name.split("/")[0] in ("launch", "diffcore", "shards", "diffbase", "slurm", "configs"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    (folder / "diffcore" / "train.py").write_text(SCRIPT)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "add", "."], check=True)
    config = yaml.safe_load((folder / "configs" / "demo-adamw.yaml").read_text())
    tree = config | {"run": "run", "data": {"path": str(data)}}
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    (folder / "acts.json").write_text("{}")
    return Checkout(folder, box, **options)
