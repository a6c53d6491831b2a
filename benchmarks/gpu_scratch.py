"""What cuDNN takes from torch's allocator inside a convolution, beside its output, on a GPU.

    python benchmarks/gpu_scratch.py [--config configs/avatar-adamw.yaml] [--batch 128] [--size 64]

For every convolution of the config's network: forward, the input's gradient and the weight's, in fp32 and
bf16, in torch's layout and channels_last, with and without deterministic algorithms. Prints one JSON list;
sizes in bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu_step import inputs
from diffcore import models
from diffcore.config import configure
from shards.schema import CARTOON_SET


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", type=Path, default=Path("configs/avatar-adamw.yaml"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=64)
    a = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here, and no scratch to measure")
    found = convolutions(a.config, a.size)
    rows = []
    for deterministic, dtype, layout in product(
        (False, True), (torch.float32, torch.bfloat16), (torch.contiguous_format, torch.channels_last)
    ):
        torch.use_deterministic_algorithms(deterministic)
        for shape, layer in found:
            row = {"deterministic": deterministic, "dtype": str(dtype)[6:]}
            row["channels_last"] = layout is torch.channels_last
            rows.append(row | measured(layer, shape, a.batch, dtype, layout))
    print(json.dumps(rows))


def convolutions(config: Path, size: int) -> list[tuple[tuple[int, ...], nn.Conv2d]]:
    """The different convolutions of a network, each with the shape [C, H, W] that comes to it."""
    network = models.build(configure.load(config, {}).model, CARTOON_SET, size).cuda()
    found: dict[tuple[Any, ...], tuple[tuple[int, ...], nn.Conv2d]] = {}

    def note(layer: nn.Conv2d, given: tuple[Tensor], _: Tensor) -> None:
        shape = tuple(given[0].shape[1:])
        found.setdefault((shape, layer.out_channels, layer.kernel_size, layer.stride), (shape, layer))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        network(*inputs(2, size, torch.device("cuda")))
    return list(found.values())


def measured(
    layer: nn.Conv2d, shape: tuple[int, ...], batch: int, dtype: torch.dtype, layout: torch.memory_format
) -> dict[str, Any]:
    x = torch.randn(batch, *shape, device="cuda", dtype=dtype).to(memory_format=layout)
    w = layer.weight.detach().to(dtype).to(memory_format=layout)
    y = F.conv2d(x, w, None, layer.stride, layer.padding)
    dy = torch.randn_like(y)

    def backward(of_x: bool, of_w: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            dy, x, w, None, layer.stride, layer.padding, [1, 1], False, [0, 0], 1, [of_x, of_w, False]
        )

    works: dict[str, Callable[[], Any]] = {
        "forward": lambda: F.conv2d(x, w, None, layer.stride, layer.padding),
        "dgrad": lambda: backward(True, False),
        "wgrad": lambda: backward(False, True),
    }
    sizes = {"x": x.nbytes, "w": w.nbytes, "y": y.nbytes}
    shapes = {"in": list(x.shape), "out": list(y.shape), "kernel": layer.kernel_size[0]}
    return shapes | sizes | {name: scratch(work) for name, work in works.items()}


def scratch(work: Callable[[], Any]) -> int:
    """Bytes that ``work`` had for itself: the peak of what was asked for, less what is left afterwards."""
    work()  # cuDNN chooses its algorithm
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    result = work()  # held, so that it is not counted
    counts = torch.cuda.memory_stats()
    del result
    return int(counts["requested_bytes.all.peak"] - counts["requested_bytes.all.current"])


if __name__ == "__main__":
    main()
