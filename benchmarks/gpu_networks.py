"""python benchmarks/gpu_networks.py [--out FILE] [--only TEXT] [--seconds 300] [--rehearse]

What a training step of networks of diffusers and transformers takes of a GPU, to hold memory plans against:
real sizes, random weights, AdamW, in fp32, under bf16 autocast, with the libraries' own gradient
checkpointing, and under torch's ``fully_shard`` on one rank.

For each cell, of torch's allocator: what was asked for (``requested``) after the states are made, at its peak
in the forward pass, the backward pass and the optimizer's step of the third training step, and cuBLAS's
workspaces, which are in all of them. ``allocated`` is the same in the allocator's blocks of 512 bytes. A cell
is a process of its own, so that one that a kernel ends takes no other along.
``--rehearse`` runs the same program small on a CPU, where nothing is counted.

``--against FILE`` plans the cells of a file that a GPU wrote, on any machine, and prints how far each plan is
from what was counted, as a table and as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

Batch = Callable[[int], dict[str, Any]]
WHOLE = ("dit", "unet", "vae")
"""Sharded as one: their forward reaches into blocks, or they are many and small."""
CELLS = ("fp32", "bf16", "bf16 checkpointing", "fsdp bf16")


def tokens(words: int, micro: int, length: int) -> Tensor:
    return torch.arange(micro * length).remainder(words).view(micro, length)


def networks(small: bool) -> dict[str, tuple[Callable[[], nn.Module], Batch, int]]:
    """(factory, batch of a micro batch, micro batch) by name."""
    layers = 1 if small else 12

    def language(words: int, length: int) -> Batch:
        return lambda m: {"input_ids": tokens(words, m, length), "labels": tokens(words, m, length)}

    def gpt2() -> nn.Module:
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=layers, n_embd=96 if small else 768)
        )

    def llama() -> nn.Module:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=32000, hidden_size=64 if small else 1024, intermediate_size=128 if small else 2816,
            num_hidden_layers=layers, num_attention_heads=4 if small else 16, num_key_value_heads=4,
        ))  # fmt: skip

    def t5() -> nn.Module:
        return transformers.T5ForConditionalGeneration(transformers.T5Config(
            d_model=64 if small else 512, d_kv=64, d_ff=128 if small else 2048, num_layers=1 if small else 6,
            num_heads=8, decoder_start_token_id=0,
        ))  # fmt: skip

    def vit() -> nn.Module:
        wide = 96 if small else 768
        return transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=wide, intermediate_size=4 * wide, num_hidden_layers=layers, num_labels=1000
            )
        )

    def whisper() -> nn.Module:
        each = 1 if small else 4
        return transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(encoder_layers=each, decoder_layers=each)
        )

    wide = (32, 64) if small else (320, 640, 1280, 1280)
    kinds = len(wide)

    def unet() -> nn.Module:
        return diffusers.UNet2DConditionModel(
            sample_size=64, block_out_channels=wide, cross_attention_dim=768,
            down_block_types=("CrossAttnDownBlock2D",) * (kinds - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (kinds - 1),
        )  # fmt: skip

    def dit() -> nn.Module:
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=4, num_layers=layers,
            sample_size=32, patch_size=2,
        )  # fmt: skip

    def flux() -> nn.Module:
        return diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_layers=1 if small else 4, num_single_layers=1 if small else 8,
            attention_head_dim=64, num_attention_heads=4 if small else 12, joint_attention_dim=768,
            pooled_projection_dim=768, axes_dims_rope=(8, 28, 28),
        )  # fmt: skip

    def vae() -> nn.Module:
        channels = (32, 32) if small else (128, 256, 512, 512)
        return diffusers.AutoencoderKL(
            block_out_channels=channels, down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels), layers_per_block=2, sample_size=256,
        )  # fmt: skip

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape)

    side = 32 if small else 256
    found: dict[str, tuple[Callable[[], nn.Module], Batch, int]] = {
        "gpt2": (gpt2, language(50257, 64 if small else 1024), 4),
        "llama": (llama, language(32000, 64 if small else 1024), 4),
        "t5": (t5, language(32000, 64 if small else 256), 8),
        "vit": (
            vit,
            lambda m: {"pixel_values": zeros(m, 3, 224, 224), "labels": zeros(m).long()},
            2 if small else 32,
        ),
        "whisper": (
            whisper,
            lambda m: {"input_features": zeros(m, 80, 3000), "labels": tokens(50000, m, 64)},
            1 if small else 8,
        ),
        "unet": (
            unet,
            lambda m: {
                "sample": zeros(m, 4, 64, 64), "timestep": zeros(m).long(),
                "encoder_hidden_states": zeros(m, 77, 768),
            },
            1 if small else 4,
        ),
        "dit": (
            dit,
            lambda m: {
                "hidden_states": zeros(m, 4, 32, 32), "timestep": zeros(m).long(),
                "class_labels": zeros(m).long(),
            },
            2 if small else 64,
        ),
        "flux": (
            flux,
            lambda m: {
                "hidden_states": zeros(m, 1024, 64), "timestep": zeros(m),
                "encoder_hidden_states": zeros(m, 128, 768), "pooled_projections": zeros(m, 768),
                "img_ids": zeros(1024, 3), "txt_ids": zeros(128, 3),
            },
            1 if small else 4,
        ),
        "vae": (vae, lambda m: {"sample": zeros(m, 3, side, side)}, 1 if small else 4),
    }  # fmt: skip
    return found


def mean_square(output: Any) -> Tensor:
    """The library's own loss where it has one, else the mean square of the first output."""
    loss = getattr(output, "loss", None)
    return loss if loss is not None else output[0].float().square().mean()


@contextlib.contextmanager
def watched(into: dict[str, Any], name: str, cuda: bool) -> Iterator[None]:
    """The allocator's peak and level of a part of a step."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    yield
    if cuda:
        stats = torch.cuda.memory_stats()
        into[name] = {
            f"{kind}_{what}": stats[f"{kind}_bytes.all.{what}"]
            for kind in ("requested", "allocated", "reserved")
            for what in ("peak", "current")
            if not (kind == "reserved" and what == "current")
        }


def blocks(module: nn.Module) -> list[nn.Module]:
    """Members of the outermost lists of modules."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in blocks(child)]


def cell(name: str, how: str, small: bool) -> dict[str, Any]:
    """Three training steps; the parts of the third."""
    factory, batch, micro = networks(small)[name]
    device = "cpu" if small else "cuda"
    cuda = device == "cuda"
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29578", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    parts: dict[str, Any] = {"micro": micro}
    if cuda:  # cuBLAS's workspaces, which stay
        x = torch.ones(64, 64, device=device)
        torch.mm(x, x), torch.mm(x.bfloat16(), x.bfloat16())
        torch.nn.functional.linear(x, x, x[0])
        del x
        parts["workspaces"] = torch.cuda.memory_stats()["requested_bytes.all.current"]
    torch.manual_seed(0)
    with torch.device(device):
        network = factory().train()
    if "checkpointing" in how:
        enable = (
            getattr(network, "gradient_checkpointing_enable", None) or network.enable_gradient_checkpointing
        )
        enable()
    sharded = how.startswith("fsdp")
    if sharded:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in [] if name in WHOLE else blocks(network):
            fully_shard(block, mp_policy=policy)
        fully_shard(network, mp_policy=policy)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    given = {key: value.to(device) for key, value in batch(micro).items()}
    autocast = "bf16" in how and not sharded
    for _ in range(3):
        with watched(parts, "forward", cuda), torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = mean_square(network(**given))
        with watched(parts, "backward", cuda):
            loss.backward()
        del loss
        with watched(parts, "optimizer", cuda):
            optimizer.step()
        with watched(parts, "after", cuda):
            optimizer.zero_grad(set_to_none=True)
    parts["parameters"] = sum(p.numel() for p in network.parameters())
    parts["inputs"] = sum(x.nbytes for x in given.values())
    torch.distributed.destroy_process_group()
    return parts


def apart(name: str, how: str, small: bool) -> dict[str, Any]:
    """``cell`` in a process of its own; how it failed, if it did."""
    command = [sys.executable, __file__, "--cell", name, how, *(["--rehearse"] if small else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip()[-300:] or f"ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


WORKSPACES = 32 * 2**20
"""Bytes of cuBLAS's second workspace: backward's thread has its own, which the first probe did not see."""
MOMENTS = (
    ("after step", "after", "current"), ("forward peak", "forward", "peak"),
    ("backward peak", "backward", "peak"), ("step peak", "optimizer", "peak"),
)  # fmt: skip


def against(path: Path, only: str) -> None:
    """Plans beside what a GPU counted."""
    from diffcore.memory import plan

    found = json.loads(path.read_text())
    rows: dict[str, dict[str, float]] = {}
    for key, cell in found["cells"].items():
        if "failed" in cell or only not in key:
            continue
        name, _, how = key.partition(" ")
        factory, batch, micro = networks(False)[name]
        made = plan(
            factory, batch, micro=micro, loss=mean_square, optimizer="adamw-fused",
            strategy="fsdp2" if how.startswith("fsdp") else "plain",
            precision="bf16" if "bf16" in how else "fp32", checkpointing="checkpointing" in how,
            blocks=(lambda network: []) if name in WHOLE else None,
        )  # fmt: skip
        rows[key] = {}
        words = []
        for moment, part, kind in MOMENTS:
            real = cell[part][f"requested_{kind}"] - found["workspaces"] - WORKSPACES
            rows[key][moment] = made.at(moment).allocated / real - 1
            words.append(f"{real / 2**20:,.0f} | {rows[key][moment]:+.2%}")
        print(f"| {key} | {' | '.join(words)} |", flush=True)
    worst = {moment: max(abs(row[moment]) for row in rows.values()) for moment, *_ in MOMENTS}
    print(json.dumps({"device": found["device"], "cells": len(rows), "worst": worst}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file for all figures, written anew after every cell")
    parser.add_argument("--only", default="", help="cells whose name has this")
    parser.add_argument("--seconds", type=float, default=300.0, help="after which no cell is begun")
    parser.add_argument("--rehearse", action="store_true", help="small, on a CPU")
    parser.add_argument("--against", type=Path, help="plan the cells of this file")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.cell:
        print(json.dumps(cell(*a.cell, a.rehearse)))
        return
    if a.against:
        against(a.against, a.only)
        return
    began = time.monotonic()
    found: dict[str, Any] = {
        "device": "CPU" if a.rehearse else torch.cuda.get_device_name(),
        "torch": torch.__version__, "diffusers": diffusers.__version__,
        "transformers": transformers.__version__, "cells": {}, "left_out": [],
    }  # fmt: skip
    for name, how in itertools.product(networks(a.rehearse), CELLS):
        key = f"{name} {how}"
        if a.only not in key:
            continue
        if time.monotonic() - began > a.seconds:
            found["left_out"].append(key)
            continue
        start = time.monotonic()
        found["cells"][key] = apart(name, how, a.rehearse)
        print(f"{key}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        if a.out is not None:
            a.out.write_text(json.dumps(found, indent=1) + "\n")
    failed = {key: row["failed"] for key, row in found["cells"].items() if "failed" in row}
    print(json.dumps({"device": found["device"], "failed": failed, "left_out": found["left_out"]}))


if __name__ == "__main__":
    main()
