"""A cluster's profile, and the sbatch file of a job on it: nothing in it becomes a line of shell."""

from __future__ import annotations

from pathlib import Path

from diffbase.files import REPOSITORY
from launch.ask import profile
from launch.ask.flags import parser
from launch.ask.spec import from_flags
from launch.job.sbatch import Sbatch
from tests.support.fuzz.target import Target

FLAGS = ["--config", "x", "--nodes", "1-2", "--gpus-per-node", "2", "--name", "job"]
WORDS = [
    b'"a\\ntouch pwned"',
    b'"a\\0b"',
    b"$(touch pwned)",
    b"; touch pwned #",
    b"'; touch pwned; '",
    b"sbatch:\n  ",
]
WORDS += [
    b"setup: [",
    b"env: {",
    b"srun: [",
    b"container: {image: x}",
    b"name: local",
    b"{mem: 3}",
    b"mem_gb: 1e300",
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "x.yaml").write_bytes(data)
        cluster = profile.load(folder / "x.yaml")
        spec = from_flags(parser().parse_args(FLAGS), cluster, "job")
        text = Sbatch(spec, folder / "job", folder / "code").text()
        head, _, shell = text.partition("\n# setup\n")
        lines = head.splitlines()
        assert lines[0] == "#!/bin/bash" and all(line.startswith("#") for line in lines if line)
        setup, _, command = shell.partition("\n# command\n")
        assert len(setup.splitlines()) == len(cluster.setup) + 6  # whose it is, umask, imports
        assert sum(line.startswith("srun ") for line in command.splitlines()) == 1
        return spec

    seeds = [path.read_bytes() for path in sorted((REPOSITORY / "slurm" / "profiles").glob("*.yaml"))]
    return Target(seeds, feed, WORDS)
