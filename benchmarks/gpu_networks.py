"""python benchmarks/gpu_networks.py [--out FILE] [--only NAME ...] [--rehearse]

What a training step of networks of diffusers and transformers takes of a GPU, to hold memory plans against:
real sizes, random weights, AdamW, in fp32, under bf16 autocast, with the libraries' own gradient
checkpointing, and under torch's ``fully_shard`` on one rank.

For each cell, of torch's allocator: what was asked for (``requested``) after the states are made, at its peak
in the forward pass, the backward pass and the optimizer's step of the third training step, and cuBLAS's
workspaces, which are in all of them. ``allocated`` is the same in the allocator's blocks of 512 bytes.
``--rehearse`` runs the same program small on a CPU, where nothing is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
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
    t, d, few = transformers, diffusers, small
    n = 1 if small else 12

    def language(words: int, length: int) -> Batch:
        return lambda m: {"input_ids": tokens(words, m, length), "labels": tokens(words, m, length)}

    def gpt2() -> nn.Module:
        return t.GPT2LMHeadModel(t.GPT2Config(n_layer=n, n_embd=96 if few else 768))

    def llama() -> nn.Module:
        return t.LlamaForCausalLM(t.LlamaConfig(
            vocab_size=32000, hidden_size=64 if few else 1024, intermediate_size=128 if few else 2816,
            num_hidden_layers=n, num_attention_heads=4 if few else 16, num_key_value_heads=4,
        ))  # fmt: skip

    def t5() -> nn.Module:
        return t.T5ForConditionalGeneration(t.T5Config(
            d_model=64 if few else 512, d_kv=64, d_ff=128 if few else 2048, num_layers=1 if few else 6,
            num_heads=8, decoder_start_token_id=0,
        ))  # fmt: skip

    def vit() -> nn.Module:
        wide = 96 if few else 768
        return t.ViTForImageClassification(
            t.ViTConfig(hidden_size=wide, intermediate_size=4 * wide, num_hidden_layers=n, num_labels=1000)
        )

    def whisper() -> nn.Module:
        layers = 1 if few else 4
        return t.WhisperForConditionalGeneration(
            t.WhisperConfig(encoder_layers=layers, decoder_layers=layers)
        )

    wide = (32, 64) if few else (320, 640, 1280, 1280)
    kinds = len(wide)

    def unet() -> nn.Module:
        return d.UNet2DConditionModel(
            sample_size=64, block_out_channels=wide, cross_attention_dim=768,
            down_block_types=("CrossAttnDownBlock2D",) * (kinds - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (kinds - 1),
        )  # fmt: skip

    def dit() -> nn.Module:
        return d.DiTTransformer2DModel(
            num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=4, num_layers=n,
            sample_size=32, patch_size=2,
        )  # fmt: skip

    def flux() -> nn.Module:
        return d.FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_layers=1 if few else 4, num_single_layers=1 if few else 8,
            attention_head_dim=64, num_attention_heads=4 if few else 12, joint_attention_dim=768,
            pooled_projection_dim=768, axes_dims_rope=(8, 28, 28),
        )  # fmt: skip

    def vae() -> nn.Module:
        channels = (32, 32) if few else (128, 256, 512, 512)
        return d.AutoencoderKL(
            block_out_channels=channels, down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels), layers_per_block=2, sample_size=256,
        )  # fmt: skip

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape)

    side = 32 if few else 256
    found: dict[str, tuple[Callable[[], nn.Module], Batch, int]] = {
        "gpt2": (gpt2, language(50257, 64 if few else 1024), 4),
        "llama": (llama, language(32000, 64 if few else 1024), 4),
        "t5": (t5, language(32000, 64 if few else 256), 8),
        "vit": (
            vit,
            lambda m: {"pixel_values": zeros(m, 3, 224, 224), "labels": zeros(m).long()},
            2 if few else 32,
        ),
        "whisper": (
            whisper,
            lambda m: {"input_features": zeros(m, 80, 3000), "labels": tokens(50000, m, 64)},
            1 if few else 8,
        ),
        "unet": (
            unet,
            lambda m: {
                "sample": zeros(m, 4, 64, 64), "timestep": zeros(m).long(),
                "encoder_hidden_states": zeros(m, 77, 768),
            },
            1 if few else 4,
        ),
        "dit": (
            dit,
            lambda m: {
                "hidden_states": zeros(m, 4, 32, 32), "timestep": zeros(m).long(),
                "class_labels": zeros(m).long(),
            },
            2 if few else 64,
        ),
        "flux": (
            flux,
            lambda m: {
                "hidden_states": zeros(m, 1024, 64), "timestep": zeros(m),
                "encoder_hidden_states": zeros(m, 128, 768), "pooled_projections": zeros(m, 768),
                "img_ids": zeros(1024, 3), "txt_ids": zeros(128, 3),
            },
            1 if few else 4,
        ),
        "vae": (vae, lambda m: {"sample": zeros(m, 3, side, side)}, 1 if few else 4),
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


def cell(
    factory: Callable[[], nn.Module], batch: Batch, micro: int, how: str, device: str, in_blocks: bool
) -> dict[str, Any]:
    """Three training steps; the parts of the third."""
    cuda = device == "cuda"
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
        for block in blocks(network) if in_blocks else []:
            fully_shard(block, mp_policy=policy)
        fully_shard(network, mp_policy=policy)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    parts: dict[str, Any] = {}
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
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seconds", type=float, default=300.0, help="after which no cell is begun")
    parser.add_argument("--rehearse", action="store_true", help="small, on a CPU")
    a = parser.parse_args()
    device, began = "cpu" if a.rehearse else "cuda", time.monotonic()
    found: dict[str, Any] = {
        "device": "CPU" if a.rehearse else torch.cuda.get_device_name(),
        "torch": torch.__version__, "diffusers": diffusers.__version__,
        "transformers": transformers.__version__, "cells": {}, "failed": {}, "left_out": [],
    }  # fmt: skip
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29578", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo" if a.rehearse else "nccl")
    if not a.rehearse:  # cuBLAS's workspaces, which stay
        x = torch.ones(64, 64, device=device)
        torch.mm(x, x), torch.mm(x.bfloat16(), x.bfloat16())
        torch.nn.functional.linear(x, x, x[0])
        del x
        found["workspaces"] = torch.cuda.memory_stats()["requested_bytes.all.current"]
    for name, (factory, batch, micro) in networks(a.rehearse).items():
        for how in CELLS:
            if a.only and name not in a.only:
                continue
            if time.monotonic() - began > a.seconds:
                found["left_out"].append(f"{name} {how}")
                continue
            start = time.monotonic()
            try:
                found["cells"][f"{name} {how}"] = {"micro": micro} | cell(
                    factory, batch, micro, how, device, name not in WHOLE
                )
            except Exception as error:  # the others are measured all the same
                found["failed"][f"{name} {how}"] = f"{type(error).__name__}: {error}"[:300]
            gc.collect()
            if not a.rehearse:
                torch.cuda.empty_cache()
            print(f"{name} {how}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
            if a.out is not None:
                a.out.write_text(json.dumps(found, indent=1) + "\n")
    torch.distributed.destroy_process_group()
    print(json.dumps({key: found[key] for key in ("device", "failed", "left_out")}))


if __name__ == "__main__":
    main()
