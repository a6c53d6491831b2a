"""Weights of a run for other programs: safetensors, the config, and a model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import nn

from diffbase.cli import InputError
from diffcore.config.tree import Config
from diffcore.runs import checkpoint, source
from diffcore.runs.model import load_network
from diffcore.runs.source import DATA, FILES


def export(run: Path, out: Path, which: str = "newest") -> None:
    """Write the export of one of the run's checkpoints to ``out``, which must not exist."""
    found = source.find(run, which)
    if found.is_export:
        raise InputError(f"{run}: is an export already; give a run folder or a checkpoint")
    if out.exists():
        raise InputError(f"--out {out}: exists already; give a new folder")
    config, folder, state = found.config, found.folder, checkpoint.read_state(found.folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for kind, name in FILES.items():
            save_file(
                found.weights(kind), temporary / name, metadata={"format": "pt", "step": str(state.step)}
            )
        (temporary / "config.yaml").write_text(config.to_yaml())
        (temporary / DATA).write_text(json.dumps(state.data, indent=1) + "\n")
        (temporary / "README.md").write_text(_card(config, state, folder))
        if config.model.kind == "diffusers":
            _write_diffusers(temporary, load_network(temporary))
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_diffusers(out: Path, network: nn.Module) -> None:
    """The averaged UNet as diffusers saves one, and Tau beside it."""
    unet: Any = network.unet
    unet.save_pretrained(out / "unet")
    save_file(network.get_submodule("tau").state_dict(), out / "tau.safetensors", metadata={"format": "pt"})


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
