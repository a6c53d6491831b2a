"""Closing the sum against NVML, with a stand-in for pynvml: one GPU, several, shared ones, MIG, and none."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from diffcore.memory import nvml
from diffcore.memory.calibration import ASSUMED

MIB = 2**20


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
        reserved = {"reserved": device.get("driver", 0)} if version else {}
        return SimpleNamespace(used=device["used"], **reserved)

    module.nvmlMemory_v2 = 2
    module.nvmlDeviceGetHandleByUUID = handle
    module.nvmlDeviceGetName = lambda device: device.get("name", "NVIDIA A10G")
    module.nvmlDeviceGetMemoryInfo = info
    module.nvmlDeviceGetComputeRunningProcesses = lambda device: [
        SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in device.get("processes", {}).items()
    ]

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
    rows = usage.rows(peak=900 * MIB, reserved=1000 * MIB, now=200 * MIB)
    assert sum(row["bytes"] for row in rows) == usage.used - 900 * MIB  # categories and rows make the sum
    return {row["name"]: row["bytes"] // MIB for row in rows}


def test_a_gpu_of_ones_own(gpu: pytest.MonkeyPatch) -> None:
    used = 1530 * MIB
    usage = measure(gpu, fake({"GPU-abc": {"used": used, "processes": {os.getpid(): used}}}))
    assert (usage.used, usage.own, usage.others, usage.complete) == (used, used, 0, True)
    rows = named(usage)
    assert rows["allocator: rounding, fragments, cache"] == 100 and rows["other processes"] == 0
    assert rows["residual"] == 530 - ASSUMED.context // MIB and "NCCL" not in rows


def test_a_shared_gpu_and_the_drivers_part(gpu: pytest.MonkeyPatch) -> None:
    device = {"used": 2500 * MIB, "driver": 300 * MIB, "processes": {os.getpid(): 1600 * MIB, 1: 700 * MIB}}
    rows = named(measure(gpu, fake({"GPU-abc": device, "GPU-other": {"used": 1}})))
    assert rows["other processes"] == 700 and rows["driver"] == 300
    older = named(measure(gpu, fake({"GPU-abc": device}, v2=False)))
    assert older["driver"] == 0


def test_several_ranks_have_nccl(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.distributed, "is_initialized", lambda: True)
    gpu.setattr(torch.distributed, "get_world_size", lambda: 8)
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
    assert named(usage) == {"allocator: rounding, fragments, cache": 100, "residual": 0}


def test_the_cpu_has_its_resident_set() -> None:
    usage = nvml.usage(torch.device("cpu"))
    rows = usage.rows(peak=50 * MIB, reserved=None, now=20 * MIB)
    assert usage.used > 50 * MIB and sum(row["bytes"] for row in rows) == usage.used - 50 * MIB
    assert {row["name"]: row["bytes"] for row in rows}["kept by malloc"] == usage.kept
