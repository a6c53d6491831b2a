"""python benchmarks/memory_any.py [--only TEXT] [--json FILE] [--seconds N]

Memory plans of other people's networks beside their real training: networks of diffusers and transformers at
small size, under torch alone, DDP, FSDP2 and DeepSpeed's ZeRO, over gloo with 2 processes and over torch's
``fake`` process group for 8 ranks in one. ``memory_truth.py --cells any`` is the same.

The planned side is diffcore.memory.plan. The measured side trains each network with its library, torch and
DeepSpeed, and none of this project's code, under torch's profiler, which reports each allocation and free of
the CPU allocator from before the network is built. ``states`` are bytes of parameters, fp32 masters and
optimizer, by the storages of their tensors. What a CPU kernel allocates and frees inside itself is left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

FIGURES = ("after step", "activations", "backward peak", "step peak")
BUCKET = 200_000
"""Elements of DeepSpeed's buckets: of its own 500 million little else would be seen."""


@dataclass(frozen=True)
class Cell:
    network: str
    strategy: str = "plain"
    precision: str = "fp32"
    checkpointing: bool = False
    optimizer: str = "adamw"
    accumulation: int = 1
    backend: str = "gloo"
    world: int = 1
    offload: str = "none"
    bucket_view: bool = False

    def __str__(self) -> str:
        place = "" if self.strategy == "plain" else f" {self.backend} x {self.world}"
        words = [self.network, self.strategy, self.precision, "checkpointing" * self.checkpointing]
        more = [self.optimizer, f"x {self.accumulation}" * (self.accumulation > 1)]
        return (
            " ".join(filter(None, words + more))
            + place
            + f" {self.offload}" * (self.offload != "none")
            + " view" * self.bucket_view
        )


def cells() -> list[Cell]:
    """Every network under every strategy, in both precisions, with and without checkpointing; ranks, process
    group and accumulation in turns."""
    found = []
    kinds = product(enumerate(NETWORKS), enumerate(STRATEGIES), (False, True), (0, 1))
    for (i, network), (j, strategy), checkpointing, other in kinds:
        odd = (i + j + checkpointing) % 2
        # gloo's own thread frees what FSDP2 hands it, which the profiler does not see.
        fake = strategy == "fsdp2" or (odd and strategy not in ("plain", "ddp"))
        found.append(
            Cell(
                network, strategy, ("fp32", "bf16")[(odd + other) % 2], checkpointing,
                world=1 if strategy == "plain" else 8 if fake and odd else 2,
                backend="fake" if fake else "gloo", accumulation=1 + (i + checkpointing + other) % 2,
            )
        )  # fmt: skip
    for optimizer in ("sgd-momentum", "adafactor", "muon", "adam"):
        found.append(Cell("gpt2", optimizer=optimizer))
        if optimizer != "muon":  # two optimizers, which DeepSpeed does not take
            found.append(Cell("gpt2", "zero2", optimizer=optimizer, world=2))
    found.append(Cell("gpt2", "fsdp2", optimizer="sgd-momentum", backend="fake", world=2))
    for strategy in STRATEGIES:
        world, backend = (1 if strategy == "plain" else 2), "fake" if strategy == "fsdp2" else "gloo"
        found.append(Cell("frozen", strategy, world=world, backend=backend))
    found += [Cell("gpt2", "zero3", "bf16", world=2, offload=what) for what in OFFLOADED]
    found.append(Cell("gpt2", "zero2", world=2, offload="optimizer"))
    found += [Cell(name, "ddp", world=2, accumulation=2, bucket_view=True) for name in ("gpt2", "vae")]
    return found


def few() -> list[Cell]:
    """One cell of each network, the strategies in turns; and optimizers that step otherwise."""
    strategies = ("plain", "fsdp2", "zero2", "ddp", "zero3", "zero1")
    found = cells()
    picked = []
    for i, network in enumerate(NETWORKS):
        of_it = [c for c in found if (c.network, c.strategy) == (network, strategies[i % len(strategies)])]
        picked.append(of_it[i // len(strategies) % len(of_it)])
    return picked + [c for c in found if c.optimizer in ("muon", "adafactor") and c.strategy == "plain"]


def networks() -> dict[str, tuple[Callable[[], Any], dict[str, str], int]]:
    """(factory, inputs as text, micro batch) by name."""
    import diffusers
    import transformers

    def gpt2() -> Any:
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=2, n_embd=96, n_head=4, vocab_size=1000)
        )

    def llama() -> Any:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=1000, hidden_size=96, intermediate_size=256, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2,
        ))  # fmt: skip

    def t5() -> Any:
        return transformers.T5ForConditionalGeneration(transformers.T5Config(
            d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=1000,
            decoder_start_token_id=0,
        ))  # fmt: skip

    def bert() -> Any:
        return transformers.BertForMaskedLM(transformers.BertConfig(
            hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
            vocab_size=1000,
        ))  # fmt: skip

    def vit() -> Any:
        return transformers.ViTForImageClassification(transformers.ViTConfig(
            hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, image_size=64,
            patch_size=8, num_labels=10,
        ))  # fmt: skip

    def whisper() -> Any:
        return transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(
            d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=1000, max_source_positions=64,
            max_target_positions=64, num_mel_bins=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1,
        ))  # fmt: skip

    def unet() -> Any:
        return diffusers.UNet2DConditionModel(
            sample_size=16, block_out_channels=(32, 64), cross_attention_dim=32, layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=8,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip

    def dit() -> Any:
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=4, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=2,
            sample_size=16, patch_size=2,
        )  # fmt: skip

    def sd3() -> Any:
        return diffusers.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=24,
            num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=96,
            pooled_projection_dim=48, out_channels=4, pos_embed_max_size=16,
        )  # fmt: skip

    def flux() -> Any:
        return diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=4, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip

    def vae() -> Any:
        return diffusers.AutoencoderKL(
            block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, sample_size=32, latent_channels=4,
        )  # fmt: skip

    def frozen() -> Any:
        network = gpt2()
        network.transformer.h[0].requires_grad_(False)
        network.transformer.wpe.requires_grad_(False)
        return network

    words = {"input_ids": "int64[B,64]", "labels": "int64[B,64]"}
    return {
        "gpt2": (gpt2, words, 4),
        "frozen": (frozen, words, 4),
        "llama": (llama, words, 4),
        "t5": (t5, words, 4),
        "bert": (bert, words, 4),
        "vit": (vit, {"pixel_values": "float32[B,3,64,64]", "labels": "int64[B]"}, 4),
        "whisper": (whisper, {"input_features": "float32[B,16,128]", "labels": "int64[B,32]"}, 4),
        "unet": (
            unet,
            {
                "sample": "float32[B,4,16,16]", "timestep": "int64[B]",
                "encoder_hidden_states": "float32[B,8,32]",
            },
            4,
        ),
        "dit": (
            dit,
            {"hidden_states": "float32[B,4,16,16]", "timestep": "int64[B]", "class_labels": "int64[B]"},
            4,
        ),
        "sd3": (
            sd3,
            {
                "hidden_states": "float32[B,4,16,16]", "encoder_hidden_states": "float32[B,8,32]",
                "pooled_projections": "float32[B,48]", "timestep": "int64[B]",
            },
            4,
        ),
        "flux": (
            flux,
            {
                "hidden_states": "float32[B,64,16]", "encoder_hidden_states": "float32[B,8,32]",
                "pooled_projections": "float32[B,32]", "timestep": "float32[B]", "img_ids": "float32[64,3]",
                "txt_ids": "float32[8,3]",
            },
            4,
        ),
        "vae": (vae, {"sample": "float32[B,3,32,32]"}, 4),
    }  # fmt: skip


NETWORKS = ("gpt2", "llama", "t5", "bert", "vit", "whisper", "unet", "dit", "sd3", "flux", "vae")
STRATEGIES = ("plain", "ddp", "fsdp2", "zero1", "zero2", "zero3")
OFFLOADED = ("optimizer", "parameters")
WHOLE = ("dit",)
"""Sharded as one by FSDP2: its forward reaches into its blocks."""


def planned(cell: Cell) -> dict[str, Any]:
    from diffcore.memory.modules.plan import job_of, loss_of, plan_of

    factory, inputs, micro = networks()[cell.network]
    job = job_of(
        factory, inputs, {}, micro, loss=loss_of(None), optimizer=optimizer_of(cell.optimizer),
        strategy=cell.strategy, precision=cell.precision, checkpointing=cell.checkpointing,
        accumulation=cell.accumulation, world=cell.world, offload=cell.offload, bucket_view=cell.bucket_view,
        deepspeed=settings(cell) or {}, cuda=False, gloo=cell.backend == "gloo",
        blocks=(lambda network: []) if cell.network in WHOLE else None,
    )  # fmt: skip
    plan = plan_of(job)
    after = plan.at("after step")
    return {
        "after step": after.allocated,
        "activations": plan.at("after forward").allocated,
        "backward peak": max(plan.at(name).allocated for name in ("forward peak", "backward peak")),
        "step peak": plan.at("step peak").allocated,
        "states": {name: after.bytes[name] for name in ("parameters", "masters", "optimizer")},
    }


def settings(cell: Cell) -> dict[str, Any] | None:
    """DeepSpeed's JSON."""
    if not cell.strategy.startswith("zero"):
        return None
    zero: dict[str, Any] = {"stage": int(cell.strategy[4:]), "reduce_bucket_size": BUCKET}
    if cell.strategy == "zero3":
        zero |= {"stage3_prefetch_bucket_size": BUCKET, "stage3_param_persistence_threshold": 1000}
    if cell.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if cell.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return {"zero_optimization": zero}


def measure(found: Sequence[Cell], until: float, settle: float) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each cell, by processes that share a process group."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in found:
        groups.setdefault((cell.backend, cell.world), []).append(cell)
    for (backend, world), together in groups.items():
        for i in range(0, len(together), 12):
            if time.monotonic() < until:
                yield from _measured(together[i : i + 12], backend, world, settle)


def _measured(
    found: Sequence[Cell], backend: str, world: int, settle: float
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        job, out = Path(folder) / "job.json", Path(folder) / "out.jsonl"
        job.write_text(
            json.dumps({"cells": [asdict(cell) for cell in found], "out": str(out), "settle": settle})
        )
        processes = []
        for rank in range(world if backend == "gloo" else 1):
            env = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu",
            }  # fmt: skip
            command = [sys.executable, __file__, "--job", str(job)]
            processes.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL))
        codes = [process.wait() for process in processes]
        rows = [json.loads(text) for text in out.read_text().splitlines()] if out.exists() else []
        if any(codes):
            print(f"{backend} x {world}: ended with {codes} after {len(rows)} cells", file=sys.stderr)
        for row in rows:
            yield found[row["number"]], row["measured"]


def work(job: dict[str, Any]) -> None:
    """One process of a group: trains every cell."""
    import deepspeed
    import torch.distributed as dist
    from memory_observed import settle_collectives, zeroing

    found = [Cell(**cell) for cell in job["cells"]]
    if found[0].backend == "fake":
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=0, world_size=found[0].world, store=FakeStore())
        for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single"):
            setattr(dist, name, zeroing(getattr(dist, name)))
        deepspeed.runtime.zero.partitioned_param_coordinator.assert_ints_same_as_other_ranks = (
            lambda *_, **__: None
        )
    else:
        dist.init_process_group("gloo")
        settle_collectives(job["settle"])
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for number, cell in enumerate(found):
        measured = observe(cell)
        gc.collect()
        if dist.get_rank() == 0:
            with Path(job["out"]).open("a") as out:
                out.write(json.dumps({"number": number, "measured": measured}) + "\n")
    sys.stdout.flush()
    os._exit(0)


def observe(cell: Cell) -> dict[str, Any]:
    """Train for some steps under the profiler."""
    import torch
    from memory_observed import events_of
    from torch.profiler import ProfilerActivity, profile, record_function

    factory, inputs, micro = networks()[cell.network]
    last = 2 if cell.strategy == "zero3" else 1
    gc.disable()
    torch.manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        training = Training(cell, factory, inputs, micro)
        for step in range(last + 1):
            for turn in range(cell.accumulation):
                with record_function(f"#forward {step}"):
                    loss = training.forward(turn)
                with record_function(f"#backward {step}"):
                    training.backward(loss, turn)
                    del loss
                with record_function(f"#step {step}"):
                    training.step(turn)
            with record_function(f"#average {step}"):
                pass
        states = training.states()
    training.close()
    changes, spans = events_of(prof.profiler.kineto_results.experimental_event_tree(), last)
    result: dict[str, Any] = {"backward peak": 0, "states": states}
    held = at = 0
    for start, end, phase in sorted(spans):
        peak = 0
        while at < len(changes) and changes[at][0] < end:
            time_ns, size, inside = changes[at]
            held += 0 if inside else size
            if time_ns >= start:
                peak = max(peak, held)
            at += 1
        if phase in ("forward", "backward"):
            result["backward peak"] = max(result["backward peak"], peak)
        if phase == "step":
            result["step peak"] = peak
        if phase == "forward":
            result["activations"] = held
        if phase == "average":
            result["after step"] = held
    return result


class Training:
    """A network as its user trains it."""

    def __init__(self, cell: Cell, factory: Callable[[], Any], inputs: dict[str, str], micro: int) -> None:
        import torch

        from diffcore.memory.modules.inputs import tensor

        self.cell, self.network = cell, factory().train()
        if cell.checkpointing:
            enable = getattr(self.network, "gradient_checkpointing_enable", None)
            (enable or self.network.enable_gradient_checkpointing)()
        half = cell.precision == "bf16" and cell.strategy in ("zero1", "zero2", "zero3")
        self.given = {name: tensor(text, micro) for name, text in inputs.items()}
        if half:
            self.given = {
                name: x.bfloat16() if x.is_floating_point() else x for name, x in self.given.items()
            }
        self.engine: Any = None
        self.autocast = cell.precision == "bf16" and cell.strategy in ("plain", "ddp")
        if cell.strategy.startswith("zero"):
            self._under_deepspeed(half, micro)
            return
        if cell.strategy == "ddp":
            self.network = torch.nn.parallel.DistributedDataParallel(
                self.network, gradient_as_bucket_view=cell.bucket_view
            )
        if cell.strategy == "fsdp2":
            self._sharded()
        self.optimizer = optimizer_of(cell.optimizer)(self._trained())

    def _trained(self) -> list[Any]:
        return [p for p in self.network.parameters() if p.requires_grad]

    def _sharded(self) -> None:
        import torch
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy()
        if self.cell.precision == "bf16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in [] if self.cell.network in WHOLE else members(self.network):
            fully_shard(block, mp_policy=policy)
        fully_shard(self.network, mp_policy=policy)

    def _under_deepspeed(self, half: bool, micro: int) -> None:
        import deepspeed

        tree = settings(self.cell)
        assert tree is not None
        tree |= {
            "train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": self.cell.accumulation,
            "steps_per_print": 2**62, "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }  # fmt: skip
        if half:
            tree["bf16"] = {"enabled": True}
        optimizer = optimizer_of(self.cell.optimizer)(self._trained())
        self.engine, *_ = deepspeed.initialize(model=self.network, optimizer=optimizer, config=tree)

    def forward(self, turn: int) -> Any:
        import contextlib

        import torch

        last = turn == self.cell.accumulation - 1
        waits = self.cell.strategy == "ddp" and not last
        self.quiet = self.network.no_sync() if waits else contextlib.nullcontext()
        with self.quiet, torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            output = (self.engine or self.network)(**self.given)
            own = getattr(output, "loss", None)
            return own if own is not None else output[0].float().square().mean()

    def backward(self, loss: Any, turn: int) -> None:
        if self.engine is not None:
            self.engine.backward(loss)
            return
        loss.backward()

    def step(self, turn: int) -> None:
        if self.engine is not None:
            self.engine.step()
        elif turn == self.cell.accumulation - 1:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def states(self) -> dict[str, int]:
        """Bytes of the distinct storages of parameters, masters and optimizer."""
        from torch import Tensor

        masters: list[Any] = []
        optimizer = self.optimizer if self.engine is None else self.engine.optimizer.optimizer
        parameters = [getattr(p, "_local_tensor", p) for p in self.network.parameters()]
        if self.cell.strategy == "zero3":
            ours = self.engine.optimizer
            masters = list(ours.fp32_partitioned_groups_flat)
            parameters = [p.ds_tensor for p in self.network.parameters()] + parameters
        elif self.engine is not None:
            masters = list(self.engine.optimizer.single_partition_of_fp32_groups)
        kept = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
        seen: set[int] = set()
        result = {}
        for name, tensors in (("parameters", parameters), ("masters", masters), ("optimizer", kept)):
            result[name] = 0
            for tensor in tensors:
                storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()
                if storage.data_ptr() not in seen:
                    seen.add(storage.data_ptr())
                    result[name] += storage.nbytes()
        return result

    def close(self) -> None:
        if self.engine is not None:
            self.engine.destroy()


def optimizer_of(name: str) -> Callable[[Any], Any]:
    from diffcore.memory.modules.optimizers import OPTIMIZERS

    return OPTIMIZERS[name]


def members(module: Any) -> list[Any]:
    """Of the outermost lists of modules."""
    import torch

    if isinstance(module, torch.nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in members(child)]


def error(row: dict[str, Any], name: str) -> float:
    return float(row["planned"][name] / row["measured"][name] - 1)


def same(row: dict[str, Any]) -> bool:
    return bool(row["planned"]["states"] == row["measured"]["states"])


def line(cell: Cell, row: dict[str, Any]) -> str:
    figures = "  ".join(
        f"{name} {row['measured'][name] / 2**20:.2f} {error(row, name):+.3%}" for name in FIGURES
    )
    return f"{cell}: {figures}  states {'=' if same(row) else 'DIFFER'}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="only cells whose line has this text")
    parser.add_argument(
        "--ci", action="store_true", help="a few cells, in which every network and strategy is"
    )
    parser.add_argument("--json", type=Path, help="every figure; what is in it is not measured again")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so many")
    parser.add_argument("--settle", type=float, default=0.01, help="seconds to wait after a collective")
    parser.add_argument("--plan-again", action="store_true", help="plan anew what --json has measured")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    if a.job:
        work(json.loads(a.job.read_text()))
    wanted = [cell for cell in (few() if a.ci else cells()) if a.only in str(cell)]
    rows: dict[Cell, dict[str, Any]] = {}
    if a.json and a.json.exists():
        there = {Cell(**row["cell"]): row for row in json.loads(a.json.read_text())["rows"]}
        rows = {cell: there[cell] for cell in wanted if cell in there}
        if a.plan_again:
            rows = {cell: row | {"planned": planned(cell)} for cell, row in rows.items()}
            print(*(line(cell, row) for cell, row in rows.items()), sep="\n")
    until = time.monotonic() + a.seconds
    for cell, measured in measure([cell for cell in wanted if cell not in rows], until, a.settle):
        rows[cell] = {"cell": asdict(cell), "planned": planned(cell), "measured": measured}
        print(line(cell, rows[cell]), flush=True)
    if not rows:
        raise SystemExit("no cell was measured")
    worst = {name: max(abs(error(row, name)) for row in rows.values()) for name in FIGURES}
    unequal = [str(cell) for cell, row in rows.items() if not same(row)]
    missed = [str(cell) for cell, row in rows.items() if max(abs(error(row, n)) for n in FIGURES) > 0.01]
    truth = {"worst": worst, "unequal": unequal, "missed": missed, "rows": list(rows.values())}
    if a.json:
        a.json.write_text(json.dumps(truth, indent=1) + "\n")
    print(
        json.dumps(
            {"cells": len(rows), "of": len(wanted), "worst": worst, "unequal": unequal, "missed": missed}
        )
    )


if __name__ == "__main__":
    main()
