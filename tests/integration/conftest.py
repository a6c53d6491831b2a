"""Real runs in real processes: a small packed set, and a launcher that never leaves anything running."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffcore.evaluation import train_judge
from tests.support import numerics, small_set, warm

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = REPOSITORY / "diffcore" / "train.py"


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 random pictures of 16 x 16 with Cartoon Set labels, packed. Read-only: copy it to change it."""
    return small_set.packed(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="session")
def judged(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ``packed`` with a judge beside it, so raw that it is told to count two attributes."""
    copy = tmp_path_factory.mktemp("judged") / "shards"
    shutil.copytree(packed, copy)
    train_judge.main([str(copy), "--epochs", "2", "--width", "8", "--threads", "1"])
    path = copy / "judge" / "judge.json"
    two = ["hair_color", "face_color"]
    tree = json.loads(path.read_text()) | {"readable": two, "headline": two}
    for name in two:
        tree["accuracy"][name]["share"] = 1.0
    path.write_text(json.dumps(tree))
    return copy


@pytest.fixture
def small(packed: Path, tmp_path: Path) -> Path:
    """A config that trains in seconds; its run folder is ``run`` beside it."""
    path = tmp_path / "small.yaml"
    path.write_text(numerics.CONFIG.replace("PACKED", str(packed)))
    return path


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """That commands run in, but for a rank's place."""
    return {k: v for k, v in os.environ.items() if k not in warm.PLACE} | {"OMP_NUM_THREADS": "1"}


WARM = warm.Warm(environment())


@pytest.fixture(scope="session", autouse=True)
def _closed() -> Iterator[None]:
    yield
    WARM.close()


def run(command: list[str], cwd: Path, timeout: float = 180, ranks: int = 1) -> Finished:
    """Run a command in a process group of its own, which is gone when this returns.

    With ``ranks`` it runs once a rank, as a launcher would start it, but without one's imports: the output is
    rank 0's, then rank 1's, and the code the first one that is not 0.
    """
    env = environment()
    port, processes = str(free_port()), list[subprocess.Popen[str] | warm.Forked]()
    with contextlib.ExitStack() as files:
        outputs = [[files.enter_context(tempfile.TemporaryFile("w+")) for _ in "oe"] for _ in range(ranks)]
        try:
            for rank, (out, err) in enumerate(outputs):
                mine = dict(zip(warm.PLACE, (str(rank), str(ranks), str(rank), port), strict=True))
                whole = env | mine if ranks > 1 else env
                if WARM.fits(command, whole):
                    processes.append(WARM.start(command, cwd, whole, out, err))
                    continue
                # fmt: off
                processes.append(subprocess.Popen(
                    command, cwd=cwd, env=whole, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                ))
                # fmt: on
            end = time.monotonic() + timeout
            codes = [process.wait(max(0, end - time.monotonic())) for process in processes]
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        texts = []
        for column in zip(*outputs, strict=True):
            for file in column:
                file.seek(0)
            texts.append("".join(file.read() for file in column))
    return Finished(next((code for code in codes if code), 0), *texts)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Train = Callable[..., Finished]


@pytest.fixture
def train(small: Path, tmp_path: Path) -> Train:
    """train(*overrides, ranks=1): the training script by path, from another folder; must end well.

    ``launcher``: started by DeepSpeed's, which costs two more processes that import it.
    """

    def launch(*overrides: str, ranks: int = 1, check: bool = True, launcher: bool = False) -> Finished:
        command = [sys.executable, str(TRAIN)]
        if launcher:
            program = str(Path(sys.executable).parent / "deepspeed")
            port = ["--master_port", str(free_port())]
            command = [sys.executable, program, "--num_gpus", str(ranks), *port, str(TRAIN)]
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        command += ["--config", str(small), *overrides]
        finished = run(command, cwd=elsewhere, ranks=1 if launcher else ranks)
        if check:
            assert finished.code == 0, finished.out[-3000:] + finished.err[-3000:]
        return finished

    return launch


def train_all(paths: list[str], ranks: int, timeout: float = 400) -> None:
    """Train the configs at ``paths`` one after the other in one group of processes (support/train_all.py)."""
    command = [sys.executable, "-m", "tests.support.train_all", *paths]
    finished = run(command, cwd=REPOSITORY, ranks=ranks, timeout=timeout)
    assert finished.code == 0, finished.out[-3000:] + finished.err[-3000:]


def losses_of(run_folder: Path) -> list[float]:
    """The loss of each line of its log."""
    return [json.loads(line)["train/loss"] for line in (run_folder / "metrics.jsonl").open()]


def refused(finished: Finished, *words: str) -> None:
    """The command ended with one line of error that has these words."""
    assert finished.code == 2, finished.out + finished.err
    lines = [line for line in finished.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in finished.err + finished.out
    for word in words:
        assert word in lines[0], lines[0]
