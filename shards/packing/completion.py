"""The last step of a pack: the card and the index of shards that are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from shards.packing.card import write_card
from shards.packing.spill import Finished, Samples, Spill
from shards.schema import Attribute
from shards.tables.write import write_index


def complete(
    out: Path,
    schema: Sequence[Attribute],
    about: dict[str, Any],
    splits: Mapping[str, Sequence[Finished]],
    spill: Spill,
) -> dict[str, int]:
    """Write ``out``'s card and its index, which makes the folder whole; the samples of each split.

    ``about`` as of ``write_index``; ``splits`` are their shards, in order. A split without one is left
    out unless it is ``train`` or ``val``: these are always there.
    """
    there = {name: some for name, some in splits.items() if some or name in ("train", "val")}
    streams = {name: spill.stream(some) for name, some in there.items()}
    counts = {name: len(stream) for name, stream in streams.items()}
    done, source = about["preprocessing"], about["source"]
    write_card(
        out,
        f"{source['name']} ({source['kind']})",
        {
            **{f"{split} samples": count for split, count in counts.items()},
            **{"image" if k == "encoding" else k: v or "largest square" for k, v in done.items()},
        },
        schema,
        spill.counts,
        Samples(spill, list(chain(*there.values()))),
        done["size"],
        done["encoding"],
    )
    shards = {name: [shard for shard, _ in some] for name, some in there.items()}
    write_index(out, schema, about, {name: (shards[name], streams[name]) for name in there})
    return counts
