"""What a process holds of a GPU beside torch's tensors, step by step, as differences of NVML's readings.

A process of its own for each GPU (``calibrate.differences`` starts them), which nothing was in before: NVML's
readings are of the whole device. Rank 0 prints one JSON: bytes of the CUDA context, of cuBLAS's and cuDNN's
libraries, of NCCL, and of cuBLAS's workspaces, which lie inside torch's allocator.
"""

from __future__ import annotations

import os
from itertools import pairwise

from diffbase.cli import json_text
from diffbase.machine import nvml


def main() -> None:
    """All of it, on the one GPU that is shown; RANK, WORLD_SIZE and the meeting place are as torchrun's."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The order of nvidia-smi, for indices; torch is asked nothing yet, which would make the context.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    name, used = nvml.first_shown()
    readings = [("nothing", used)]

    import torch

    def read(what: str) -> None:
        torch.cuda.synchronize()
        readings.append((what, nvml.first_shown()[1] - torch.cuda.memory_reserved()))

    one = torch.zeros(1, device="cuda")
    read("context")
    layer = torch.nn.Linear(64, 64, device="cuda")
    x = torch.randn(64, 64, device="cuda", requires_grad=True)
    before = torch.cuda.memory_allocated()
    y = layer(x).sum()
    y.backward()
    read("cublas")
    made = [y, x.grad, layer.weight.grad, layer.bias.grad]
    ours = sum(-(-tensor.nbytes // 512) * 512 for tensor in made if tensor is not None)
    workspaces = torch.cuda.memory_allocated() - before - ours
    convolution = torch.nn.Conv2d(16, 16, 3, device="cuda")
    convolution(torch.randn(2, 16, 32, 32, device="cuda")).sum().backward()
    read("cudnn")
    torch.distributed.init_process_group("nccl")
    torch.distributed.all_reduce(one)
    read("nccl")
    if torch.distributed.get_rank() == 0:
        steps = {what: after - at for (_, at), (what, after) in pairwise(readings)}
        about = {"gpu": name, "cuda": torch.version.cuda, "torch": torch.__version__, "driver": nvml.driver()}
        sizes = {"ranks": torch.distributed.get_world_size(), "workspaces": workspaces}
        print(json_text({**about, **sizes, **steps}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
