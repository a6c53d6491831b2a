"""python -m diffcore.evaluation.colors --run RUN [--samples 256]

Do the samples have the face and hair colour that was asked for? Read by the palette rule, without a network,
and printed beside its two controls: the same rule on real images (it should be right), and against shuffled
wishes (it should fall to chance). For stand-in avatars only. Writes ``colors.json`` into the run folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffbase.files import write_atomic
from diffcore.evaluation import command
from shards.schema import CARTOON_SET


def main(argv: Sequence[str] | None = None) -> None:
    parser = command.parser("diffcore.evaluation.colors", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder of diffcore/train.py")
    command.add_samples(parser, 256, "images drawn")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the run's)")
    parser.add_argument("--steps", type=int, help="network evaluations an image (default: the run's)")
    parser.add_argument("--sampler", help="sampler (default: the run's)")
    arguments = parser.parse_args(argv)
    command.check(arguments, least=1)

    import numpy as np
    from rich.console import Console

    from diffcore.sample import choose_labels, load_run, sampling_of
    from shards.read import ShardReader
    from shards.remote.cache import Cache
    from shards.standin.colors import agreement

    model = load_run(arguments.run)
    if model.schema != CARTOON_SET:
        raise InputError(f"{arguments.run}: the palette rule reads avatars; this run's labels are others")
    sampling = sampling_of(model.config, arguments)
    labels_BA = choose_labels(model.schema, {}, arguments.seed, arguments.samples)
    drawn = agreement(model.draw(labels_BA, sampling, arguments.seed), labels_BA.numpy())
    data = model.config.data
    cache = Cache(data.cache, data.cache_bytes)
    with ShardReader(data.path, "train", order="sequential", cache=cache) as reader:
        real_batch = reader.read(np.arange(min(arguments.samples, len(reader))))
    real = agreement(real_batch.images, real_batch.labels)

    result = {
        name: {
            "asked": drawn[name],
            "samples": int(drawn[f"{name}_count"]),
            "real_images": real[name],
            "shuffled_wishes": drawn[f"{name}_shuffled"],
        }
        for name in ("hair_color", "face_color")
    }
    settings = sampling.model_dump(include={"guidance", "steps", "sampler"})
    record = {"step": model.step, "seed": arguments.seed, **settings, "agreement": result}
    write_atomic(arguments.run / "colors.json", (json.dumps(record, indent=1) + "\n").encode())
    headings = ("attribute", "samples", "as asked", "control: real images", "control: shuffled wishes")
    table = command.table(f"Colours as asked, step {model.step}, {settings}", *headings)
    for name, row in result.items():
        shares = (f"{row[key]:.1%}" for key in ("asked", "real_images", "shuffled_wishes"))
        table.add_row(name, str(row["samples"]), *shares)
    Console().print(table)


if __name__ == "__main__":
    cli.run(main)
