"""Weights of a run for others: safetensors, the config and a model card, or one small file with its card."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from diffbase.cli import InputError
from diffbase.files import check_writable, renamed, write_json
from diffbase.formats import json_file
from diffbase.line import markdown
from diffbase.redaction import shown
from diffbase.shipped import workplace
from diffbase.system_error import named
from diffcore import models
from diffcore.config.configure import replace
from diffcore.config.tree import Config, Sampling
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine.ranks import one_device
from diffcore.runs import source
from diffcore.runs.averages.combine import average
from diffcore.runs.draw import choose_labels, draw
from diffcore.runs.model import load_network
from diffcore.runs.pretrained import files, quantize
from diffcore.runs.pretrained.card import Card, card_of
from diffcore.runs.run_folder import DataRecord, run_of
from diffcore.runs.sampling import sampling_with, some_of
from diffcore.runs.source import DATA, FILES, Source
from diffcore.runs.stored.record import State, read_state
from diffcore.runs.tensors import write_tensors, writing

COMPARED = 16
"""Images that are drawn with both to see what a compact file has lost."""
FIGURES = ("quality.json", "colors.json")
GIVEN = {
    "flow": "noise - image, from (1 - s) image + s noise",
    "edm": "Karras et al. 2022, eq. 7, from c_in x; sigma_data {:g}",
}
"""What targets mean that see the noisy image by another factor, which a program must know."""
CLIMBED = 2
"""Folders above an export that its config's paths may go through: further up are homes and disks."""


def export(run: Path, out: Path, which: str = "newest", sigma_rel: float | None = None) -> None:
    """Write the export of one of the run's checkpoints to ``out``, which must not exist.

    With ``sigma_rel`` the averaged weights are of that width (``averages.combine``).
    """
    check_writable(out.parent)
    found = _to_export(run, which)
    if out.exists():
        raise InputError(f"--out {out}: exists already; give a new folder")
    config, state = found.config, _state(found)
    kinds = {kind: name for kind, name in FILES.items() if kind == "ema" or found.card is None}
    if sigma_rel is not None and found.card is not None:
        raise InputError(f"{run}: a file of weights keeps no snapshots to make an average of; give the run")
    made = average(run_of(found.folder), config, sigma_rel, state.step) if sigma_rel is not None else None
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for kind, name in kinds.items():
            about = {"format": "pt", "step": str(state.step)}
            weights = made[0] if made and kind == "ema" else found.weights(kind)
            write_tensors(temporary / name, weights, about)
        with named(out):
            (temporary / "config.yaml").write_text(portable(config, out))
            (temporary / DATA).write_text(json.dumps(state.data, indent=1) + "\n")
            (temporary / "README.md").write_text(_card(found, state, kinds, sigma_rel))
        if config.model.kind == "diffusers":
            _write_diffusers(temporary, load_network(temporary))
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _to_export(run: Path, which: str) -> Source:
    found = source.find(run, which)
    if found.is_export:
        raise InputError(f"{run}: is an export already; give a run folder or a checkpoint")
    return found


def _state(found: Source) -> State:
    """What the checkpoint says of itself; of a file, what its card says in its place."""
    card = found.card
    if card is None:
        return read_state(found.folder)
    shapes = {name: list(weight.shape) for name, weight in found.weights("ema").items()}
    data = dict(found.data)
    return State(card.step, card.samples, card.step, {}, data, 1, 0, card.precision, card.code, shapes)


def compact(
    run: Path,
    out: Path,
    dtype: quantize.Dtype,
    which: str = "newest",
    *,
    licence: str = "not stated",
    about: str = "",
    figures: Sequence[Path] = (),
) -> Card:
    """Write the averaged weights of a checkpoint as one file, ``out``, and its card beside it.

    ``about``: the data in words. ``figures``: JSON files whose contents the card has, by their names; without
    any the run's own that are there (``FIGURES``). What is lost by ``dtype`` is measured: images of the same
    labels and noise are drawn with fp32 weights too. InputError where one of both files is there.
    """
    if out.suffix != files.SUFFIX:
        raise InputError(f"--out {out}: one file of weights; give a name that ends in {files.SUFFIX}")
    for path in (out, card_of(out)):
        if path.exists():
            raise InputError(f"--out {out}: {path.name} exists already; give a new name")
    check_writable(out.parent)
    found = _to_export(run, which)
    state = _state(found)
    own = [found.folder.parents[1] / name for name in FIGURES] if found.card is None else []
    measured = {path.stem: json_file.read(path) for path in figures or [p for p in own if p.is_file()]}
    for tree in measured.values():
        if isinstance(tree, dict):
            tree.pop("run", None)  # a path of this machine
    weights = found.weights("ema")
    written = quantize.compacted(weights, dtype)
    recommended = replace(found.config, "sampling", sampling_with(found.config, run, {}).model_dump())
    restored, sampling = quantize.restored(written), recommended.sampling
    exact, coarse = (_drawn(found, some, sampling) for some in (weights, restored))
    off = np.abs(exact - coarse)
    error = {"images": COMPARED, "mean": round(float(off.mean()), 4), "max": float(off.max())}
    recipe = yaml.safe_load(portable(recommended, out))
    recipe["data"]["path"] = _from_here(found.config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with renamed(out) as temporary:
        write_tensors(temporary, written, {"format": "pt", "step": str(state.step)})
        data = temporary.read_bytes()
    card = Card(
        about=about, licence=licence, data=DataRecord.model_validate(dict(found.data)), recipe=recipe,
        step=state.step, samples=state.samples, parameters=sum(map(Tensor.numel, weights.values())),
        code=state.code, precision=state.precision, dtype=dtype, bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(), error=error,
        drawn=[round(float(mean), 2) for mean in coarse.mean(axis=(0, 1, 2))], figures=measured,
    )  # fmt: skip
    write_json(card_of(out), card.model_dump(mode="json", by_alias=True))
    return card


def _from_here(config: Config) -> str:
    """The shards' path as from the folder that has the configs' data/ and runs/; else their name alone."""
    path = config.data.path
    if not isinstance(path, Path):
        return shown(path)
    inside = path.is_relative_to(workplace())
    return path.relative_to(workplace()).as_posix() if inside else path.name or "data"


def _drawn(found: Source, weights: Mapping[str, Tensor], sampling: Sampling) -> NDArray[np.int16]:
    """Images of seed 0 and random attributes: [N, H, W, 3], 0 to 255."""
    config, device = found.config, one_device()
    network = models.build(config.model, found.schema, found.size)
    network.load_state_dict(dict(weights))
    images = draw(
        network.to(device).eval(), NoiseSchedule.of(config.diffusion),
        choose_labels(found.schema, {}, 0, COMPARED), range(COMPARED), sampling,
        shape=(3, found.size, found.size), seed=0, device=device,
    )  # fmt: skip
    return images.astype(np.int16)


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


def _card(found: Source, state: State, kinds: Mapping[str, str], sigma_rel: float | None) -> str:
    config, folder = found.config, found.folder
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
    size, raw = markdown(state.data["size"]), "`model.raw.safetensors` the optimizer's, " * ("raw" in kinds)
    shift = f", shift {d.shift:g}" if d.shift != 1 else ""
    ends = ", rescaled to end in pure noise" if d.zero_terminal_snr else ""
    seen = "[0, 1]" if d.pixels == "unit" else "[-1, 1]"
    given = f" ({GIVEN[d.target].format(d.sigma_data)})" if d.target in GIVEN else ""
    return f"""---
{yaml.safe_dump(facts, sort_keys=False)}---

# {config.model.kind} UNet, {count:,} parameters

A denoising network for images of {size} x {size} pixels in {seen}.

| | |
|---|---|
| attributes (variants) | {attributes} |
| schedule | {d.schedule}, {d.timesteps} timesteps, input scale {d.input_scale:g}{ends}{shift} |
| predicts | {d.target}{given} |
| trained | {state.step:,} steps of {config.batch.size} images, {markdown(state.precision)} |
| data | shards with fingerprint {markdown(state.data["fingerprint"])} |
| code | {markdown(state.code)} |
| checkpoint | {markdown(folder.name)} |
| average | {f"decay {config.ema.decay:g}" if sigma_rel is None else f"sigma_rel {sigma_rel:g}"} |
{called}
`model.safetensors` holds the averaged weights, {raw}`config.yaml` the
whole config of the run, with names in the place of paths. `diffcore.export.load_network(folder)` builds the
network and loads them.
"""
