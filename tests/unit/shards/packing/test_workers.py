"""The ordered map over processes: order, bounds, errors, and what becomes of a worker that dies."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from shards.packing.workers import THREADS, map_in_order
from tests.support.faults.kit import root


def slow_square(number: int) -> int:
    time.sleep(0.02 * (number % 3 == 0))  # later items are ready before earlier ones
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise InputError("three is bad")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os._exit(9)
    return number


def environment(name: str) -> str | None:
    return os.environ.get(name)


def deaf(_: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("jobs", [1, 2])
def test_in_order(jobs: int) -> None:
    assert list(map_in_order(slow_square, range(20), jobs)) == [n * n for n in range(20)]
    assert list(map_in_order(slow_square, [], jobs)) == []


def test_a_temporary_folder_that_leaves_no_room_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = (
        "from shards.packing.workers import map_in_order\n"
        "if __name__ == '__main__': print(list(map_in_order(abs, [-1, 2], 2)))"
    )
    (tmp_path / "program.py").write_text(code)
    env = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(tmp_path / "program.py")]
    finished = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (finished.returncode, finished.stdout) == (0, "[1, 2]\n"), finished.stderr


@pytest.mark.parametrize("jobs", [1, 2])
def test_takes_only_a_few_items_ahead(jobs: int) -> None:
    items = itertools.count()
    with closing(map_in_order(slow_square, items, jobs)) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert next(items) <= 3 + 2 * jobs


@pytest.mark.parametrize("jobs", [1, 2])
def test_error_comes_in_its_place(jobs: int) -> None:
    results = map_in_order(fail_at_three, range(9), jobs)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="three is bad"):
        next(results)


def test_worker_that_dies_is_told() -> None:
    with pytest.raises(InputError, match="a worker died"):
        list(map_in_order(die_at_three, range(9), 2))


def test_workers_leave_other_cores_alone() -> None:
    before = dict(os.environ)
    assert list(map_in_order(environment, THREADS, 2)) == ["1"] * len(THREADS)
    assert dict(os.environ) == before


def test_ctrl_c_is_the_parents_to_tell_from_the_first_moment() -> None:
    """Workers are deaf to it before they run a line of ours."""
    assert list(map_in_order(deaf, range(2), 2)) == [True, True]
    assert not deaf(0)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.ENOENT, errno.EACCES, errno.ENOSYS])
def test_no_room_for_locks_is_told_with_its_folder(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def locks(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", locks)
    with pytest.raises(InputError, match=rf"/dev/shm: {os.strerror(number)}: .*--shm-size.*--jobs 1"):
        list(map_in_order(slow_square, range(3), 2))
    assert list(map_in_order(slow_square, range(3), 1)) == [0, 1, 4]


@pytest.mark.parametrize("options", ["ro", "size=4k"])
@pytest.mark.skipif(not root(), reason="only root mounts disks")
def test_a_shared_memory_that_is_read_only_or_tiny(options: str) -> None:
    mount = f"mount -t tmpfs -o {options} tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("LEFT OUT: no disk can be mounted here")
    code = (
        "from diffbase.cli import run; from shards.packing.workers import map_in_order\n"
        "run(lambda: print(list(map_in_order(abs, [1, 2], 2))))"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount}; exec "$@"', "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: /dev/shm: "), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_workers_take_no_module_of_the_current_folder(tmp_path: Path) -> None:
    """As the console script runs, whose own path has not the current folder."""
    for name in ("multiprocessing", "numpy", "shards"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            f"open({str(tmp_path / 'taken')!r}, 'a').write(__name__)"
        )
    command = (
        "import sys; sys.path.remove('')\n"
        "from diffbase.cli import run\n"
        "from shards.packing.workers import map_in_order\n"
        "print(run(lambda: list(map_in_order(abs, range(9), 2))))"
    )
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stdout == f"{list(range(9))}\n", done.stderr
    assert not (tmp_path / "taken").exists()
