"""Commands in forks of one process that has loaded torch and DeepSpeed, which is much of a short run's time.

    warm = Warm(env)
    process = warm.start([sys.executable, "diffcore/train.py", ...], cwd, env, out, err)
    code = process.wait(60)

A fork is what a new process would be: a session of its own, its arguments, environment, folder and outputs,
modules loaded and nothing done. Only commands in whose environment nothing is different that is read by an
import may be started so (``Warm.fits``); others are for subprocess.
"""

from __future__ import annotations

import array
import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from launch.supervise.child import die_with_parent

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = (str(REPOSITORY / "diffcore" / "train.py"),)
MODULES = ("tests.support.train_all", "diffcore.sample", "diffcore.evaluate", "diffcore.export")
LOADED = (
    "diffcore.config.configure", "diffcore.evaluation.quality.probe", "diffcore.training.process",
    "torch.utils.tensorboard", "torch._inductor", "deepspeed.runtime.zero.muon.muon_optimizer",
)  # fmt: skip
"""What such commands load; the last two, with torch's compiler, for train.deterministic and DeepSpeed."""
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
LATE = (*PLACE, "PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG")
"""Of an environment what no import reads."""


class Forked:
    """A started command; ``pid`` is its process group too."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._code: int | None = None
        self.pid = int(_line(connection))

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or minus the signal that ended it; subprocess.TimeoutExpired as there."""
        if self._code is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self._code = int(_line(self._connection))
            self._connection.close()
        return self._code


class Warm:
    """The process that is forked; it starts with the first command, in ``env`` without a rank's place."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self._server: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="warm")
        self._address = str(Path(self._folder.name) / "socket")

    def close(self) -> None:
        """End it; what runs goes on."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        self._folder.cleanup()

    def fits(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether a fork is what the command would be."""
        known = command[1] in SCRIPTS or (command[1] == "-m" and command[2] in MODULES)
        return command[0] == sys.executable and known and _early(env) == _early(self.env)

    def start(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], *outputs: IO[Any]) -> Forked:
        """Start a command that ``fits``, with these files as its standard output and error."""
        self._begin()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        job = json.dumps({"command": list(command[1:]), "cwd": str(cwd), "env": dict(env)}).encode() + b"\n"
        files = array.array("i", [file.fileno() for file in outputs])
        sent = connection.sendmsg([job], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        connection.sendall(job[sent:])
        return Forked(connection)

    def _begin(self) -> None:
        if self._server is not None:
            return
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm", self._address],
            cwd=REPOSITORY, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + 120
        while not Path(self._address).exists():
            assert self._server.poll() is None and time.monotonic() < end, "the warm process did not start"
            time.sleep(0.05)


def _early(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in LATE}


# --- the process itself -----------------------------------------------------------------------------------


def serve(address: str) -> NoReturn:
    """Load, then fork for each connection, as long as there is who asks."""
    die_with_parent()
    from diffcore.engine import process_group

    process_group.load()
    for name in LOADED:
        importlib.import_module(name)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are waited for by nobody
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen(64)
        Path(f"{address}.new").rename(address)
        while True:
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                _keep(connection)
            connection.close()


def _keep(connection: socket.socket) -> NoReturn:
    """In a fork: be the parent of the command, and say its number and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        job, files = _job(connection)
        pid = os.fork()
        if not pid:
            connection.close()
            _become(job, files)
        for file in files:
            os.close(file)
        connection.sendall(f"{pid}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(f"{status}\n".encode())
        code = 0
    finally:
        os._exit(code)


def _job(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    files = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(2 * files.itemsize))
    for _, _, content in ancillary:
        files.frombytes(content)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 20)
    return json.loads(data), list(files)


def _become(job: dict[str, Any], files: Sequence[int]) -> NoReturn:
    """In a fork: run the command as Python would."""
    code: Any = 1
    try:
        os.setsid()
        for number, file in enumerate([os.open(os.devnull, os.O_RDONLY), *files]):
            os.dup2(file, number)
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["env"])
        first, *rest = job["command"]
        path = [*sys.path[not sys.flags.safe_path :]]
        if first == "-m":
            sys.path[:], sys.argv[:] = [job["cwd"], *path], rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[:], sys.argv[:] = [str(Path(first).parent), *path], [first, *rest]
            runpy.run_path(first, run_name="__main__")
        code = 0
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (more := connection.recv(64)):
        line += more
    return line.strip()


if __name__ == "__main__":
    serve(sys.argv[1])
