"""What the preflight makes of what it sees."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.machine import nvml
from diffbase.machine.nvml import device_health
from launch.scheduler.client import lost_nodes
from launch.supervise import preflight


def test_room_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    assert preflight.room(tmp_path, 0.0, "scratch") is None
    assert list(tmp_path.iterdir()) == []
    problem = preflight.room(tmp_path, 1e9, "scratch")
    assert problem is not None
    assert "GB free, 1e+09 wanted" in problem


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    assert (
        preflight.room(tmp_path / "no", 0, "run folder")
        == f"run folder {tmp_path / 'no'}: No such file or directory"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_others_is_told() -> None:
    assert preflight.room(Path("/"), 0, "scratch") == "scratch /: Permission denied"


@given(st.integers(3, 12), st.data())
def test_a_single_slow_node_is_found_among_its_neighbours(nodes: int, data: st.DataObject) -> None:
    slow = data.draw(st.integers(0, nodes - 1))
    pairs = {f"n{i} n{(i + 1) % nodes}": 1.0 if slow in (i, (i + 1) % nodes) else 10.0 for i in range(nodes)}
    assert set(preflight.slow_nodes(pairs, 5.0)) == {f"n{slow}"}
    assert preflight.slow_nodes(pairs, 0.5) == {}
    assert preflight.slow_nodes(pairs, 50.0) == {}  # all of them: no node's fault


def test_lost_nodes_are_read() -> None:
    assert lost_nodes("n1 idle\nn2 down*\nn2 down*\nn3 mix*\nn4 alloc\nn5 failing\n") == ["n2", "n3", "n5"]


class FakeNvml:
    """As much of pynvml as the check of the devices takes."""

    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 0

    NVMLError_NotSupported = type("NVMLError_NotSupported", (Exception,), {})

    def __init__(self, errors: list[int | str | None]) -> None:
        self.errors = errors

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.errors:
            raise OSError("no driver")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.errors)

    def nvmlDeviceGetHandleByIndex(self, i: int) -> int:  # noqa: N802
        return i

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        return int(uuid[-1])

    def nvmlDeviceGetTotalEccErrors(self, handle: int, *kind: int) -> int:  # noqa: N802
        errors = self.errors[handle]
        if errors is None:
            raise self.NVMLError_NotSupported
        if isinstance(errors, str):
            raise type(f"NVMLError_{errors}", (Exception,), {})("x")
        return errors

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}"


@pytest.mark.parametrize(
    ("errors", "shown", "wanted"),
    [
        ([0, 0], None, []),
        ([0, None], None, []),
        ([0], None, ["1 GPUs, 2 wanted"]),
        ([0, 3], None, ["GPU 1: 3 uncorrected memory errors since its start"]),
        ([5, 0, 0], "1,2", []),  # another job's GPU is not ours to judge
        ([0, 7], "GPU-0,GPU-1", ["GPU GPU-1: 7 uncorrected memory errors since its start"]),
        ([0, 0], " 0, 1", []),
        ([0, 0], "", ["0 GPUs (CUDA_VISIBLE_DEVICES=), 2 wanted"]),
        ([0, 0, 0], "0,-1,2", ["1 GPUs (CUDA_VISIBLE_DEVICES=0,-1,2), 2 wanted"]),
        ([0, 0], "1", ["1 GPUs (CUDA_VISIBLE_DEVICES=1), 2 wanted"]),
        ([0, 0], "1,GPU-1", ["1 GPUs (CUDA_VISIBLE_DEVICES=1,GPU-1), 2 wanted"]),  # one, by two names
        ([0, 0], "0,GPU-1", []),
        ([0, "GpuIsLost"], None, ["GPU 1: NVMLError_GpuIsLost: x"]),
        ([0, "NoPermission"], None, []),
        ([], None, ["no GPU can be seen (OSError: no driver)"]),
    ],
)
def test_devices(
    errors: list[int | str | None], shown: str | None, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(errors))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    health = device_health(2)
    assert list(health.problems) == wanted
    unread = [f"GPU {i}" for i, count in enumerate(errors) if count == "NoPermission"]
    assert [note.partition(":")[0] for note in health.notes] == unread


@pytest.mark.parametrize(
    ("error", "files", "well"),
    [
        ("LibraryNotFound", 2, True),  # a container without NVML
        ("LibraryNotFound", 1, False),
        ("LibraryNotFound", 0, False),
        ("DriverNotLoaded", 2, False),
    ],
)
def test_without_nvml_the_device_files_count(
    error: str, files: int, well: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNvml([0])
    wrong = type(f"NVMLError_{error}", (Exception,), {})("x")
    monkeypatch.setattr(fake, "nvmlInit", Mock(side_effect=wrong))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(nvml, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    for number in range(files):
        (tmp_path / f"nvidia{number}").touch()
    health = device_health(2)
    assert (not health.problems, len(health.notes)) == (well, int(well))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"pairs": {}}', '{"gbps": "x", "pairs": {}}', '{"gbps": 1, "pairs": 7}']
)
def test_a_damaged_result_of_the_allreduce_is_none(tmp_path: Path, text: str) -> None:
    from launch.ask.profile import Cluster
    from launch.ask.spec import JobSpec
    from launch.supervise.environment import Layout
    from launch.supervise.meeting import Meeting

    meeting = Meeting(tmp_path / "job" / "001" / "live", "7.0")
    meeting.open()
    (meeting.folder / "speed-0.json").write_text(text)
    spec = JobSpec.model_validate(
        {"cluster": Cluster(name="box"), "job": "j", "nodes": 1, "nodes_min": 1, "tasks_per_node": 1,
         "gpus_per_node": 0, "cpus_per_task": 1, "minutes": 60}
    )  # fmt: skip
    line, bad = preflight.judge(meeting, {}, Layout("7", "7.0", 0, 0, 1, 0, 1, 0, ("n1",)), spec)
    assert line is not None and line.startswith("all-reduce: no result (") and not bad


def test_the_probe_writes_through_no_link(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("precious")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / f".probe-{os.uname().nodename}-{os.getpid()}").symlink_to(kept)
    assert preflight.room(shared, 0, "scratch") is None
    assert kept.read_text() == "precious" and len(list(shared.iterdir())) == 1
