"""An export's data.json and weights, a run's run.json and sampling.json."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.runs import run_folder
from diffcore.runs.export import export
from diffcore.runs.model import load_network
from diffcore.runs.sampling import RECOMMENDED, sampling_with
from diffcore.runs.source import DATA, FILES, find
from shards.schema import Attribute
from tests.support import tiny_run
from tests.support.fuzz.target import Target

SCHEMA = (Attribute("hair", 3), Attribute("eyes", 2))
RECOMMENDATION = {"sampler": "ddim", "steps": 3, "guidance": 2.0}
WORDS = [b'"variants"', b'"size"', b'"sampler"', b'"step"', b'"F32"', b'"identity"', b"[8,8]"]


def target() -> Target:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        run, out = tiny_run.write(Path(name) / "run", 5, schema=SCHEMA), Path(name) / "out"
        export(run, out)
        text = (out / "config.yaml").read_text().replace(name, "/nowhere")
        data, weights = (out / DATA).read_bytes(), (out / FILES["ema"]).read_bytes()
        (Path(name) / "config.yaml").write_text(text)
        config = configure.load(Path(name) / "config.yaml")
    record = json.dumps({"version": 1, "identity": config.identity(), "data": json.loads(data)}).encode()

    def feed(case: bytes, folder: Path) -> object:
        told: list[InputError] = []
        here = configure.changed(config, {"run": str(folder)})
        (folder / "config.yaml").write_text(text)
        (folder / DATA).write_bytes(data)
        (folder / FILES["ema"]).write_bytes(weights)
        readers = [lambda: load_network(folder)]
        if case[:1] == b"{":
            (folder / DATA).write_bytes(case)
            (folder / "run.json").write_bytes(case)
            (folder / RECOMMENDED).write_bytes(case)
            readers += [
                lambda: run_folder.check(here, json.loads(data)),
                lambda: sampling_with(config, folder, {}),
            ]
        else:
            (folder / FILES["ema"]).write_bytes(case)
            readers += [lambda: find(folder).step]
        found: list[object] = []
        for read in readers:
            try:
                found.append(read())
            except InputError as error:
                told.append(error)
        if not found:
            raise told[0]
        return found

    return Target([data, record, json.dumps(RECOMMENDATION).encode(), weights], feed, WORDS)
