"""GPUs that are there, hidden, broken, or not seen by torch, with stand-ins for NVML and torch."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from launch.doctor import devices
from launch.doctor.finding import Finding


class NvmlError(Exception):
    pass


class Nvml(ModuleType):
    """As much of pynvml as is asked; ``errors`` counts uncorrected ones per GPU, None: the GPU is lost."""

    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 0
    nvmlMemory_v2 = 2
    NVMLError = NvmlError
    NVMLError_LibraryNotFound = type("NVMLError_LibraryNotFound", (NvmlError,), {})
    NVMLError_DriverNotLoaded = type("NVMLError_DriverNotLoaded", (NvmlError,), {})
    NVMLError_NotSupported = type("NVMLError_NotSupported", (NvmlError,), {})

    def __init__(
        self, errors: list[int | None], driver: str = "580.1", cuda: int = 13000, mig: bool = False
    ) -> None:
        super().__init__("pynvml")
        self.errors, self.driver, self.cuda, self.mig = errors, driver, cuda, mig
        self.at_start: Exception | None = None

    def nvmlInit(self) -> None:  # noqa: N802
        if self.at_start:
            raise self.at_start

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return self.driver.encode()

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.errors)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:  # noqa: N802
        if self.errors[number] is None:
            raise NvmlError("GPU is lost")
        return number

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "NVIDIA Test"

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int = 1) -> Any:  # noqa: N802
        return type("Memory", (), {"total": 80 << 30})

    def nvmlDeviceGetMigMode(self, handle: int) -> tuple[int, int]:  # noqa: N802
        if not self.mig:
            raise self.NVMLError_NotSupported
        return 1, 1

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, since: int) -> int:  # noqa: N802
        return self.errors[handle] or 0


def use(monkeypatch: pytest.MonkeyPatch, nvml: Nvml, shown: str | None = None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)


def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml([])
    nvml.at_start = nvml.NVMLError_LibraryNotFound("NVML Shared Library Not Found")
    use(monkeypatch, nvml)


def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Nvml([0, 0]))
    assert list(devices.gpus()) == [
        Finding("ok", "GPUs", "2 x NVIDIA Test, 80 GiB; driver 580.1 (CUDA 13.0)")
    ]


@pytest.mark.parametrize(
    ("errors", "what"),
    [([0, 3], "GPU 1: 3 uncorrected memory errors"), ([0, None], "GPU 1: NvmlError: GPU is lost")],
)
def test_a_broken_gpu_is_bad(monkeypatch: pytest.MonkeyPatch, errors: list[int | None], what: str) -> None:
    use(monkeypatch, Nvml(errors))
    fine, broken = devices.gpus()
    assert fine.status == "ok"
    assert broken.status == "bad"
    assert broken.found.startswith(what)


def test_hidden_gpus_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Nvml([0, 0]), shown="")
    (line,) = devices.gpus()
    assert line.status == "warn"
    assert line.found.startswith("2 installed, none shown")


def test_a_driver_that_does_not_answer_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml([])
    nvml.at_start = NvmlError("Driver/library version mismatch")
    use(monkeypatch, nvml)
    (line,) = devices.gpus()
    assert line.status == "bad"
    assert "version mismatch" in line.found


def test_no_gpu_is_ok_unless_one_is_on_the_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_driver(monkeypatch)
    monkeypatch.setattr(devices, "BUS", tmp_path)
    for name, vendor, kind in [("a", "0x8086", "0x030000"), ("b", "0x10de", "0x040300")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    (line,) = devices.gpus()
    assert line.status == "ok"
    (tmp_path / "b" / "class").write_text("0x030200\n")
    (line,) = devices.gpus()
    assert line.status == "warn"
    assert "no driver is here" in line.found


def torch_sees(
    monkeypatch: pytest.MonkeyPatch, count: int, cuda: str | None, warning: str = ""
) -> dict[str, Finding]:
    def available() -> bool:
        if warning:
            warnings.warn(warning, stacklevel=1)
        return count > 0

    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    return {line.name: line for line in devices.torch_and_gpus()}


def test_torch_sees_all(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Nvml([0, 0]))
    lines = torch_sees(monkeypatch, 2, "13.0")
    assert lines["torch build"].status == "ok"
    assert lines["torch build"].found.endswith("built for CUDA 13.0; sees 2 GPUs")
    assert lines["communication"] == Finding("ok", "communication", "NCCL 2.27.3")


def test_torch_for_the_cpu_beside_a_gpu_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Nvml([0]))
    line = torch_sees(monkeypatch, 0, None)["torch build"]
    assert line.status == "bad"
    assert "built for the CPU; sees 0 of 1 GPUs: this build knows no CUDA" in line.found
    assert "install torch for CUDA" in str(line.todo)


def test_an_old_driver_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Nvml([0], driver="470.82", cuda=11040))
    line = torch_sees(monkeypatch, 0, "13.0", "The NVIDIA driver on your system is too old")["torch build"]
    assert line.status == "bad"
    assert line.found.endswith("driver 470.82 is too old, it knows CUDA up to 11.4")
    assert line.todo == "a driver for CUDA 13.0, or a torch that is built for CUDA 11"


def test_an_older_driver_of_the_same_cuda_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Nvml([0], cuda=12020))
    line = torch_sees(monkeypatch, 0, "12.8", "CUDA initialization: Unexpected error")["torch build"]
    assert line.status == "bad"
    assert line.found.endswith("sees 0 of 1 GPUs: CUDA initialization: Unexpected error")


def test_one_of_two_is_bad_unless_they_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Nvml([0, 0]))
    assert torch_sees(monkeypatch, 1, "13.0")["torch build"].status == "bad"
    use(monkeypatch, Nvml([0, 0], mig=True))
    assert torch_sees(monkeypatch, 1, "13.0")["torch build"].status == "ok"


def test_hidden_gpus_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Nvml([0, 0]), shown="")
    assert torch_sees(monkeypatch, 0, "13.0")["torch build"].status == "ok"


def test_without_gpus_ranks_need_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    no_driver(monkeypatch)
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: True)
    lines = torch_sees(monkeypatch, 0, None)
    assert lines["torch build"].status == "ok"
    assert lines["communication"].found.startswith("gloo")
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    assert torch_sees(monkeypatch, 0, None)["communication"].status == "bad"


def test_gpus_need_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Nvml([0]))
    assert torch_sees(monkeypatch, 1, None)["communication"].status == "bad"
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert torch_sees(monkeypatch, 1, "13.0")["communication"].status == "bad"
