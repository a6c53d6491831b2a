"""python -m diffcore.export RUN --out DIR [--checkpoint newest|best|STEP]

Weights of a run for other programs: safetensors with the averaged and with the raw weights, the config, and a
model card. In Python

    from diffcore.export import load_network
    network = load_network("DIR")           # or which="raw"

gives the network back. Of a diffusers model DIR/unet also loads with UNet2DConditionModel.from_pretrained,
and DIR/tau.safetensors holds the projection of the attributes that feeds its cross-attention.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diffbase import cli
from diffbase.cli import InputError
from diffcore import configure
from diffcore.config import Config
from shards.schema import Attribute

if TYPE_CHECKING:
    from torch import Tensor, nn

FILES = {"ema": "model.safetensors", "raw": "model.raw.safetensors"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(prog="python -m diffcore.export", description="Weights of a run for other programs.")
    parser.add_argument("run", type=Path, help="run folder of diffcore/train.py")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--checkpoint", default="newest", help="newest, best, or a step")
    arguments = parser.parse_args(argv)
    export(arguments.run, arguments.out, arguments.checkpoint)
    print(arguments.out)


def export(run: Path, out: Path, which: str = "newest") -> None:
    """Write the export of one of the run's checkpoints to ``out``, which must not exist."""
    from safetensors.torch import save_file

    from diffcore import checkpoint

    config = config_of(run)
    folder = choose(run, which)
    if out.exists():
        raise InputError(f"--out {out}: exists already; give a new folder")
    state = checkpoint.read_state(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for kind, name in FILES.items():
            weights = checkpoint.read_weights(folder, "weights" if kind == "raw" else kind)
            save_file(weights, temporary / name, metadata={"format": "pt"})
        (temporary / "config.yaml").write_text(config.to_yaml())
        (temporary / "data.json").write_text(json.dumps(state.data, indent=1) + "\n")
        (temporary / "README.md").write_text(_card(config, state, folder))
        if config.model.kind == "diffusers":
            _write_diffusers(temporary, load_network(temporary))
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def config_of(run: Path) -> Config:
    """The config of a run folder or an export. InputError where it is none."""
    if not (run / "config.yaml").exists():
        raise InputError(f"{run}: not a run folder (no config.yaml)")
    return configure.load(run / "config.yaml")


def choose(run: Path, which: str) -> Path:
    """A complete, undamaged checkpoint of a run: newest, best or a step. InputError if it is not there."""
    from diffcore import checkpoint

    if which == "newest":
        folder, skipped = checkpoint.newest(run)
        if folder is None:
            raise InputError(f"{run}: no complete checkpoint ({'; '.join(skipped) or 'none was written'})")
        return folder
    if which == "best":
        found = checkpoint.best(run)
        if found is None:
            raise InputError(f"{run}: no checkpoint is the best yet: train.best was never measured")
        folder = found[0]
    elif which.isascii() and which.isdigit():
        folder = checkpoint.folder_of(run) / f"step-{int(which):08d}"
    else:
        raise InputError(f"--checkpoint {which}: allowed are newest, best or a step")
    problem = checkpoint.check(folder)
    if problem is not None:
        there = ", ".join(str(int(path.name[5:])) for path in checkpoint.complete(run)) or "none"
        raise InputError(f"{folder}: {problem}; complete checkpoints: {there}")
    return folder


def load_weights(source: Path, which: str) -> dict[str, Tensor]:
    """``ema`` or ``raw`` weights by name of a run folder, a checkpoint or an export: fp32, CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from diffcore import checkpoint

    if (source / FILES[which]).exists():
        try:
            return load_file(source / FILES[which])
        except SafetensorError as error:
            raise InputError(f"{source / FILES[which]}: not a whole safetensors file: {error}") from error
    if (source / "state.json").exists():
        problem = checkpoint.check(source)
        if problem is not None:
            raise InputError(f"{source}: {problem}")
        folder = source
    elif (source / "config.yaml").exists():
        folder = choose(source, "newest")
    else:
        raise InputError(f"{source}: no run folder, checkpoint or export")
    return checkpoint.read_weights(folder, "weights" if which == "raw" else which)


def load_network(folder: Path | str, which: str = "ema") -> nn.Module:
    """The network of an export, in evaluation mode on the CPU; see ``models`` for what it takes and gives."""
    from diffcore import models

    folder = Path(folder)
    config = config_of(folder)
    data = json.loads((folder / "data.json").read_text())
    schema = tuple(Attribute(a["name"], a["variants"]) for a in data["schema"])
    network = models.build(config.model, schema, data["size"])
    network.load_state_dict(load_weights(folder, which))
    return network.eval().requires_grad_(False)


def _write_diffusers(out: Path, network: nn.Module) -> None:
    """The averaged UNet as diffusers saves one, and Tau beside it."""
    from safetensors.torch import save_file

    network.unet.save_pretrained(out / "unet")
    save_file(network.tau.state_dict(), out / "tau.safetensors", metadata={"format": "pt"})


def _card(config: Config, state: Any, folder: Path) -> str:
    facts = {
        "library_name": "diffusers" if config.model.kind == "diffusers" else "diffcore",
        "tags": ["diffusion", "image-generation", config.model.kind],
    }
    attributes = ", ".join(f"{a['name']} ({a['variants']})" for a in state.data["schema"]) or "none"
    d, count = config.diffusion, sum(prod(shape) for shape in state.shapes.values())
    return f"""---
{yaml.safe_dump(facts, sort_keys=False)}---

# {config.model.kind} UNet, {count:,} parameters

A denoising network for images of {state.data["size"]} x {state.data["size"]} pixels in [-1, 1].

| | |
|---|---|
| attributes (variants) | {attributes} |
| schedule | {d.schedule}, {d.timesteps} timesteps, input scale {d.input_scale:g} |
| predicts | {d.target} |
| trained | {state.step:,} steps of {config.batch.size} images, {state.precision} |
| data | shards with fingerprint {state.data["fingerprint"]} |
| code | {state.code} |
| checkpoint | {folder.name} |

`model.safetensors` holds the averaged weights, `model.raw.safetensors` the optimizer's, `config.yaml` the
whole config of the run. `diffcore.export.load_network(folder)` builds the network and loads them.
"""


if __name__ == "__main__":
    cli.run(main)
