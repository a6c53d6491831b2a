"""What ``import diffcore`` offers that no other module has by itself: data, configs and memory (docs/api.md).

The commands parse flags and call the same libraries. Nothing here prints, and nothing loads torch but a plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffbase.cli import InputError
from diffbase.files import path_of
from diffcore.config import configure
from diffcore.config.tree import Config
from shards.packing.bad import OnBad
from shards.packing.outside import pack_to
from shards.packing.packer import Summary
from shards.packing.plan import Settings
from shards.packing.workers import worker_count
from shards.read import ShardReader
from shards.remote.cache import LIMIT, Cache
from shards.remote.fetch import is_url

if TYPE_CHECKING:
    from diffcore.memory.planning.plan import Plan


def load_config(path: Path | str, overrides: Mapping[str, Any] | None = None, **more: Any) -> Config:
    """The config in a YAML file, with overrides by dotted key, nested, or both.

    ``{"train.steps": 5}`` and ``{"train": {"steps": 5}}`` are the same; ``more`` are overrides too, as in
    ``train={"steps": 5}``. Their relative paths are taken from the working directory, the file's from its
    folder. InputError with field, value and what is allowed.
    """
    return configure.load(Path(path), configure.nested({**(overrides or {}), **more}))


def pack(
    source: Path | str,
    out: Path | str,
    *,
    size: int = Settings.size,
    crop: int | None = Settings.crop,
    image: str = Settings.image,
    shard_size: int = Settings.shard_size,
    val: float = Settings.val,
    kind: str | None = None,
    on_bad: str = OnBad.action,
    bad_limit: int | None = None,
    jobs: int = 1,
    report: Callable[[int, int | None], None] = lambda done, total: None,
) -> Summary:
    """Pack a folder or an archive of labelled images into ``out``, as ``python -m shards.pack``.

    ``out`` is a folder, or its URL.

    ``size`` and ``crop``: edges of the packed images and of the centre crop, pixels (None: the source's usual
    one). ``image``: png, webp or npy. ``shard_size``: samples in a shard. ``val``: share of validation
    samples. ``kind`` of source: found out by itself. ``on_bad``: ``stop`` when all bad images are named in
    ``bad.jsonl``, or ``skip`` up to ``bad_limit`` of them (None: 1 % of the samples, at least 10).

    ``jobs``: worker processes; a script that wants more than one must call this under
    ``if __name__ == '__main__'``, as with all multiprocessing. ``report(done, total)`` is called as samples
    are done; total is None while it is unknown.

    The same call goes on after a kill. InputError for a mistake in the source or the settings, OSError where
    the disk fails.
    """
    with _in_keywords():
        settings = Settings(size=size, crop=crop, image=image, shard_size=shard_size, val=val)
        jobs = worker_count(jobs)
        place = str(out) if is_url(out) else path_of(out, "out")
        bad = OnBad(on_bad, bad_limit)
        return pack_to(Path(source), place, settings, kind=kind, on_bad=bad, jobs=jobs, report=report)


@contextmanager
def _in_keywords() -> Iterator[None]:
    """Mistakes in a caller's words: a keyword (shard_size) where the library has a flag (--shard-size)."""
    try:
        yield
    except InputError as error:
        text = re.sub(r"(?<!\S)--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), str(error))
        if isinstance(error.__cause__, BrokenProcessPool):  # workers import a script anew
            text += "; in a script call it under if __name__ == '__main__', or with jobs=1"
        raise InputError(text) from error.__cause__


def open_shards(
    path: Path | str,
    split: str = "train",
    *,
    batch_size: int = 64,
    seed: int = 0,
    order: str = "full",
    tail: str = "wrap",
    on_error: str = "raise",
    replace_limit: int = 100,
    report: Callable[[str], None] = lambda line: None,
    threads: int = 2,
    cache: Path | str | None = None,
    cache_bytes: int = LIMIT,
) -> ShardReader:
    """A split of a packed folder, or of its URL, as a reader of batches; docs/shards.md has the settings.

    ``reader.epoch(0)`` gives every sample once, in batches; ``reader.batches(step)`` the endless stream from
    a step on; ``reader.read(positions)`` any positions of it. ``len(reader)`` is the number of samples.

    ``report`` gets a line for each sample that is replaced (``on_error``). ``cache`` is a folder for a URL's
    files, of at most ``cache_bytes``. Close the reader, or use it in a ``with``. InputError for a bad folder,
    an unknown or empty split, or a setting that is not allowed.
    """
    try:
        return ShardReader(
            str(path),
            split,
            seed=seed,
            order=order,
            tail=tail,
            batch=batch_size,
            on_error=on_error,
            replace_limit=replace_limit,
            report=report,
            threads=threads,
            cache=Cache(None if cache is None else Path(cache), cache_bytes),
        )
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from error


def plan_memory(
    config: Config | Path | str,
    overrides: Mapping[str, Any] | None = None,
    *,
    world: int = 1,
    rank: int = 0,
    device: Literal["cuda", "cpu"] = "cuda",
    calibration: str | None = None,
    **more: Any,
) -> Plan:
    """What a run will take on ``rank`` of ``world``, as ``python -m diffcore.memory plan``; docs/memory.md.

    All sizes are bytes: ``plan.smi`` is the number that nvidia-smi will show; ``plan.peak.allocated`` and
    ``plan.peak.bytes`` are the tensors at the fullest moment, in all and by category; ``plan.moments`` has
    the moments of a step. ``plan.fits(80)`` says whether a card of 80 GB holds it.

    ``overrides`` and ``more`` are those of ``load_config``. ``device`` "cpu": a run over gloo, without CUDA's
    allocator. ``calibration``: NVML's name of a GPU that was measured. Needs no GPU and no shards; where
    there are no shards, ``plan.notes`` says what is assumed. InputError as training itself would say it.
    """
    from diffcore.memory.advise import Planner
    from diffcore.memory.calibration import calibration_named

    if device not in ("cuda", "cpu"):
        raise InputError(f"device {device!r}: allowed are cuda, cpu")
    given = {**(overrides or {}), **more}
    if isinstance(config, Config):
        config = configure.changed(config, configure.nested(given))
    else:
        config = load_config(config, given)
    planner = Planner(config, device=device, outside=calibration_named(calibration))
    return planner.with_stages(planner.plan(config, world, rank), config)
