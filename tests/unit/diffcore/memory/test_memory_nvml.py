"""Closing the sum against NVML, with a stand-in for pynvml: one GPU, several, shared ones, MIG, and none."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from diffcore.memory.calibration import ASSUMED, Calibration, calibration, shipped
from diffcore.memory.measure import usage as nvml
from diffcore.memory.measure.counted import Counted, Counts, unfollowed

MIB = 2**20
TOTAL = 24_000 * MIB
COUNTED = Counted(requested=950 * MIB, allocated=960 * MIB, reserved=1000 * MIB)


class NVMLError(Exception):
    pass


def fake(uuids: dict[str, dict[str, Any]], *, v2: bool = True) -> ModuleType:
    """A pynvml that knows these devices by UUID."""
    module: Any = ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.nvmlInit = lambda: None

    def handle(uuid: str) -> dict[str, Any]:
        if uuid not in uuids:
            raise NVMLError(f"Not Found: {uuid}")
        return uuids[uuid]

    def info(device: dict[str, Any], version: int | None = None) -> SimpleNamespace:
        if version is not None and not v2:
            raise NVMLError("Function Not Found")
        driver = device.get("driver", 0)
        reserved = {"reserved": driver} if version else {}
        free = TOTAL - device["used"] - (driver if device.get("beside") else 0)
        return SimpleNamespace(total=TOTAL, free=free, used=device["used"], **reserved)

    module.nvmlMemory_v2 = 2
    module.nvmlDeviceGetHandleByUUID = handle
    module.nvmlDeviceGetName = lambda device: device.get("name", "NVIDIA A10G")
    module.nvmlDeviceGetMemoryInfo = info

    def processes(device: dict[str, Any]) -> list[SimpleNamespace]:
        if device.get("processes", {}) is None:
            raise NVMLError("Insufficient Permissions")
        sizes = device.get("processes", {}).items()
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in sizes]

    module.nvmlDeviceGetComputeRunningProcesses = processes

    def no_graphics(device: dict[str, Any]) -> list[Any]:
        raise NVMLError("Not Supported")

    module.nvmlDeviceGetGraphicsRunningProcesses = no_graphics
    return module


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A torch with one CUDA device, abc, of which 1,000 MiB are reserved."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1000 * MIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    return monkeypatch


def measure(gpu: pytest.MonkeyPatch, module: ModuleType) -> nvml.Usage:
    gpu.setitem(sys.modules, "pynvml", module)
    return nvml.usage(torch.device("cuda"))


def named(usage: nvml.Usage) -> dict[str, int]:
    rows = usage.rows(peak=900 * MIB, now=200 * MIB, counted=COUNTED)
    assert sum(row["bytes"] for row in rows) == usage.used - 900 * MIB  # categories and rows make the sum
    return {row["name"]: row["bytes"] // MIB for row in rows}


def test_a_gpu_of_ones_own(gpu: pytest.MonkeyPatch) -> None:
    used = 1530 * MIB
    usage = measure(gpu, fake({"GPU-abc": {"used": used, "processes": {os.getpid(): used}}}))
    assert (usage.used, usage.own, usage.others, usage.complete) == (used, used, 0, True)
    rows = named(usage)
    assert rows["not followed: workspaces of kernels"] == 50 and rows["allocator: rounding"] == 10
    assert rows["allocator: fragments, cache"] == 40 and rows["other processes"] == 0
    assert rows["residual"] == 530 - ASSUMED.context // MIB and "NCCL" not in rows


def test_a_shared_gpu_and_the_drivers_part(gpu: pytest.MonkeyPatch) -> None:
    device = {"used": 2500 * MIB, "driver": 300 * MIB, "processes": {os.getpid(): 1600 * MIB, 1: 700 * MIB}}
    rows = named(measure(gpu, fake({"GPU-abc": device, "GPU-other": {"used": 1}})))
    assert rows["other processes"] == 700 and rows["driver"] == 300
    older = named(measure(gpu, fake({"GPU-abc": device}, v2=False)))
    assert older["driver"] == 0


def test_what_the_driver_keeps_is_counted_once(gpu: pytest.MonkeyPatch) -> None:
    """Newer drivers leave it out of what they call used."""
    used = 1000 * MIB + ASSUMED.context
    beside = {"used": used, "driver": 600 * MIB, "beside": True, "processes": {os.getpid(): used}}
    within = {"used": used + 600 * MIB, "driver": 600 * MIB, "processes": {os.getpid(): used}}
    for device, driver in ((beside, 0), (within, 600)):
        rows = named(measure(gpu, fake({"GPU-abc": device})))
        assert (rows["driver"], rows["residual"]) == (driver, 0)


def test_a_list_of_processes_that_is_refused_is_a_note(gpu: pytest.MonkeyPatch) -> None:
    usage = measure(gpu, fake({"GPU-abc": {"used": 1600 * MIB, "processes": None}}))
    assert usage.complete and usage.used == 1600 * MIB and usage.others is None
    assert "does not list the processes (NVMLError: Insufficient Permissions)" in usage.notes[0]


def test_a_calibration_is_of_a_gpu_and_a_version(gpu: pytest.MonkeyPatch) -> None:
    mine = Calibration(300 * MIB, 32 * MIB, ASSUMED.nccl, "seen", measured=True)
    gpu.setitem(shipped(), ("NVIDIA A10G", "12.8"), mine)
    assert calibration("NVIDIA A10G", "12.8") == calibration("NVIDIA A10G") == mine
    # One GPU says nothing of NCCL between several.
    assert mine.source_nccl(1) == "seen" and mine.source_nccl(8) == "seen, of a group of one rank"
    assert mine.nccl_known(1) and not mine.nccl_known(8) and not ASSUMED.nccl_known(1)
    older = calibration("NVIDIA A10G", "12.6")
    assert older.context == mine.context and not older.measured and "CUDA 12.8" in older.source
    assert calibration("another", "12.8") is ASSUMED


def test_the_allocators_counts_at_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two micro batches and a step."""
    readings = iter(
        [(50, 90), (20, 60), (55, 70), (21, 80), (10, 40)]
    )  # current and peak since the last mark
    kinds, now = ("requested", "allocated", "reserved"), {}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: now)
    counts = Counts(torch.device("cuda"))
    for phase in ("forward", "backward", "forward", "backward", "step"):
        held, peak = next(readings)
        now.update(
            {
                f"{kind}_bytes.all.{which}": size
                for kind in kinds
                for which, size in (("current", held), ("peak", peak))
            }
        )
        counts.mark(phase)
    found = {name: counted.requested for name, counted in counts.moments.items()}
    assert found == {
        "forward peak": 90, "after forward": 55, "backward peak": 80, "step peak": 40, "after step": 10,
    }  # fmt: skip


def test_blocks_that_nothing_followed_has() -> None:
    """torch.cuda.memory_snapshot()'s blocks lie one after the other in their segment."""
    states = ("active_allocated", "inactive", "active_allocated", "active_pending_free")
    blocks = [{"size": 512 << i, "state": state} for i, state in enumerate(states)]
    segments = [
        {"address": 10_000, "blocks": blocks},
        {"address": 90_000, "blocks": [{"size": 8192, "state": "active_allocated"}]},
    ]
    assert unfollowed(segments, [10_000, 90_000, 5]) == (2048 + 4096, 2)


@pytest.mark.parametrize("ranks", [1, 8])
def test_a_group_has_nccl(gpu: pytest.MonkeyPatch, ranks: int) -> None:
    gpu.setattr(torch.distributed, "is_initialized", lambda: True)
    gpu.setattr(torch.distributed, "get_world_size", lambda: ranks)
    rows = named(measure(gpu, fake({"GPU-abc": {"used": 9000 * MIB}})))
    assert rows["NCCL"] == ASSUMED.nccl // MIB and rows["residual"] > 0


def test_a_container_hides_process_numbers(gpu: pytest.MonkeyPatch) -> None:
    device = {"used": 1500 * MIB, "processes": {1: None}}
    usage = measure(gpu, fake({"GPU-abc": device}))
    assert usage.others is None and any("process" in note for note in usage.notes)
    assert named(usage)["other processes"] == 0


@pytest.mark.parametrize("shown", [None, "MIG-abc"])
def test_a_mig_instance_is_asked_itself(gpu: pytest.MonkeyPatch, shown: str | None) -> None:
    if shown:
        gpu.setenv("CUDA_VISIBLE_DEVICES", shown)
    usage = measure(gpu, fake({"MIG-abc": {"used": 1600 * MIB, "name": "A100 MIG 1g.10gb"}}))
    assert usage.source == "NVML, MIG instance" and usage.device == "A100 MIG 1g.10gb"
    assert any("MIG" in note for note in usage.notes)


def test_no_nvml_is_a_note(gpu: pytest.MonkeyPatch) -> None:
    broken: Any = fake({})
    broken.nvmlInit = lambda: (_ for _ in ()).throw(NVMLError("Driver Not Loaded"))
    usage = measure(gpu, broken)
    assert usage.used == 1000 * MIB and not usage.complete
    assert "no NVML (NVMLError: Driver Not Loaded)" in usage.notes[0]
    names = ("not followed: workspaces of kernels", "allocator: rounding", "allocator: fragments, cache")
    assert named(usage) == dict(zip((*names, "residual"), (50, 10, 40, 0), strict=True))


def test_the_cpu_has_its_resident_set() -> None:
    usage = nvml.usage(torch.device("cpu"))
    rows = usage.rows(peak=50 * MIB, now=20 * MIB, counted=None)
    assert usage.used > 50 * MIB and sum(row["bytes"] for row in rows) == usage.used - 50 * MIB
    assert {row["name"]: row["bytes"] for row in rows}["kept by malloc"] == usage.kept


def test_the_room_is_the_devices_or_the_machines(gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """NVML's total, what CUDA says without it, and on a CPU the tightest of the machine and its cgroup."""
    assert measure(gpu, fake({"GPU-abc": {"used": 1}})).room == nvml.Room(TOTAL, "NVML, whole device")
    properties = SimpleNamespace(uuid="abc", total_memory=TOTAL // 2)
    gpu.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert measure(gpu, fake({})).room == nvml.Room(TOTAL // 2, "CUDA, the whole device")
    limit = tmp_path / "memory.max"
    gpu.setattr(nvml, "CGROUPS", (str(tmp_path / "none"), str(limit)))
    machine = nvml.host()
    for text, room in (("max\n", machine), ("12345\n", nvml.Room(12345, "the cgroup's limit"))):
        limit.write_text(text)
        assert nvml.host() == room == nvml.usage(torch.device("cpu")).room
    limit.write_text(str(machine.bytes * 2))
    assert nvml.host() == machine and machine.bytes > 0
