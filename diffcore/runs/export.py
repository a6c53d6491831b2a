"""Weights of a run for other programs: safetensors, the config, and a model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from diffbase.cli import InputError
from diffbase.files import check_writable
from diffbase.line import markdown
from diffbase.redaction import shown
from diffbase.system_error import named
from diffcore.config.tree import Config
from diffcore.runs import checkpoint, source
from diffcore.runs.averages.combine import average
from diffcore.runs.model import load_network
from diffcore.runs.run_folder import run_of
from diffcore.runs.sampling import some_of
from diffcore.runs.source import DATA, FILES
from diffcore.runs.tensors import write_tensors, writing

CLIMBED = 2
"""Folders above an export that its config's paths may go through: further up are homes and disks."""


def export(run: Path, out: Path, which: str = "newest", sigma_rel: float | None = None) -> None:
    """Write the export of one of the run's checkpoints to ``out``, which must not exist.

    With ``sigma_rel`` the averaged weights are of that width (``averages.combine``).
    """
    check_writable(out.parent)
    found = source.find(run, which)
    if found.is_export:
        raise InputError(f"{run}: is an export already; give a run folder or a checkpoint")
    if out.exists():
        raise InputError(f"--out {out}: exists already; give a new folder")
    config, folder, state = found.config, found.folder, checkpoint.read_state(found.folder)
    made = average(run_of(folder), config, sigma_rel, state.step) if sigma_rel is not None else None
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for kind, name in FILES.items():
            about = {"format": "pt", "step": str(state.step)}
            weights = made[0] if made and kind == "ema" else found.weights(kind)
            write_tensors(temporary / name, weights, about)
        with named(out):
            (temporary / "config.yaml").write_text(portable(config, out))
            (temporary / DATA).write_text(json.dumps(state.data, indent=1) + "\n")
            (temporary / "README.md").write_text(_card(config, state, folder, sigma_rel))
        if config.model.kind == "diffusers":
            _write_diffusers(temporary, load_network(temporary))
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def portable(config: Config, out: Path) -> str:
    """The config's YAML without what is private: URLs have no credentials, paths are names.

    The data's path is relative to the export ``out`` where the two lie near each other, so that an export
    that was not moved finds them.
    """
    tree = config.model_dump(mode="json")
    data = config.data.path
    if isinstance(data, Path):
        relative = Path(os.path.relpath(data, out.absolute()))
        near = relative.parts.count("..") <= CLIMBED
        tree["data"]["path"] = relative.as_posix() if near else data.name or "data"
    else:
        tree["data"]["path"] = shown(data)
    tree["data"]["cache"] = tree["data"]["judge"] = None
    tree["run"] = config.run.name or "run"
    tree["init_from"] = config.init_from and config.init_from.name
    tree["engine"]["deepspeed"] = config.engine.deepspeed and config.engine.deepspeed.name
    return str(yaml.safe_dump(tree, sort_keys=False))


def _write_diffusers(out: Path, network: nn.Module) -> None:
    """The averaged UNet as diffusers saves one, and Tau beside it."""
    unet: Any = network.unet
    with writing(out / "unet"):
        unet.save_pretrained(out / "unet")
    write_tensors(out / "tau.safetensors", network.get_submodule("tau").state_dict(), {"format": "pt"})


def _card(config: Config, state: Any, folder: Path, sigma_rel: float | None) -> str:
    facts = {
        "library_name": "diffusers" if config.model.kind == "diffusers" else "diffcore",
        "tags": ["diffusion", "image-generation", config.model.kind],
    }
    # What a run folder says may be anybody's: it is text here.
    schema = state.data["schema"]
    attributes = ", ".join(markdown(f"{a['name']} ({a['variants']})") for a in schema) or "none"
    variants = "\n".join(
        f"- {markdown(a['name'])}: {markdown(some_of(a['names']))}" for a in schema if a.get("names")
    )
    called = f"\nThe variants, in the order of their numbers:\n\n{variants}\n" if variants else ""
    d, count = config.diffusion, sum(prod(shape) for shape in state.shapes.values())
    size = markdown(state.data["size"])
    return f"""---
{yaml.safe_dump(facts, sort_keys=False)}---

# {config.model.kind} UNet, {count:,} parameters

A denoising network for images of {size} x {size} pixels in [-1, 1].

| | |
|---|---|
| attributes (variants) | {attributes} |
| schedule | {d.schedule}, {d.timesteps} timesteps, input scale {d.input_scale:g} |
| predicts | {d.target} |
| trained | {state.step:,} steps of {config.batch.size} images, {markdown(state.precision)} |
| data | shards with fingerprint {markdown(state.data["fingerprint"])} |
| code | {markdown(state.code)} |
| checkpoint | {markdown(folder.name)} |
| average | {f"decay {config.ema.decay:g}" if sigma_rel is None else f"sigma_rel {sigma_rel:g}"} |
{called}
`model.safetensors` holds the averaged weights, `model.raw.safetensors` the optimizer's, `config.yaml` the
whole config of the run, with names in the place of paths. `diffcore.export.load_network(folder)` builds the
network and loads them.
"""
