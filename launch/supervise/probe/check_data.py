"""python -m launch.supervise.probe.check_data --config FILE: does this node read the submitted shards?

The preflight's look at the data, in a process of its own: a disk that hangs must not hold up the supervisor.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.config.tree import Data

SHARDS = 8
"""Of a split of more shards the first sample of so many is read, the same ones on every node."""


def main() -> None:
    """InputError, which is exit code 2, where the shards cannot be read or are others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--fingerprint", help="of the index that was submitted")
    flags = parser.parse_args()
    check(configure.load(flags.config).data, flags.fingerprint)


def check(data: Data, fingerprint: str | None) -> None:
    """Read the index and a part of the shards. What lies behind a URL is left to training."""
    if isinstance(data.path, str):
        return
    import numpy as np

    from shards.read import ShardReader
    from shards.table import Index

    index = Index.load(data.path)
    if fingerprint and index.fingerprint != fingerprint:
        raise InputError(
            f"data.path: {data.path} holds other shards than were submitted "
            f"(index {index.fingerprint[:12]}, not {fingerprint[:12]})"
        )
    if index.header.is_elsewhere:
        return
    # fmt: off
    with ShardReader(
        data.path, order="sequential", on_error=data.on_error, replace_limit=data.replace_limit,
        report=lambda line: None,
    ) as reader:
        # fmt: on
        firsts = np.unique(reader.split.starts[:-1])  # a shard may be empty
        chosen = np.unique(np.linspace(0, len(firsts) - 1, SHARDS).round().astype(np.int64))
        reader.read_files(firsts[chosen])


if __name__ == "__main__":
    cli.run(main)
