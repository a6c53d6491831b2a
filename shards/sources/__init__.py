"""Where samples come from: one adapter per kind of source, in the dict ``SOURCES``.

An adapter is a class over one path. It knows its label schema and yields samples, lazily and always in
the same order: image bytes (or the path to read them from, so that workers read in parallel) and labels.

Imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase.cli import InputError
from shards.sources.base import AS_IT_IS, Asked, Sample, Source, checked_key, natural
from shards.sources.cartoonset import CartoonArchive, CartoonFolder
from shards.sources.cifar import Cifar10Archive, Cifar10Folder, Cifar100Archive, Cifar100Folder
from shards.sources.contents import look, said
from shards.sources.imagearchive import ImageArchive
from shards.sources.imagefolder import ImageFolder
from shards.sources.packed import PackedFolder
from shards.sources.parquet_images import ParquetImages
from shards.sources.tars.webdataset import WebDataset

__all__ = ["AS_IT_IS", "SOURCES", "Asked", "Sample", "Source", "checked_key", "detect", "natural"]

# The adapters of each kind; the first that claims a path takes it, the pickiest come first.
SOURCES: dict[str, tuple[type[Source], ...]] = {
    "shards": (PackedFolder,),
    "cifar10": (Cifar10Folder, Cifar10Archive),
    "cifar100": (Cifar100Folder, Cifar100Archive),
    "cartoonset": (CartoonFolder, CartoonArchive),
    "webdataset": (WebDataset,),
    "parquet": (ParquetImages,),
    "imagefolder": (ImageFolder, ImageArchive),
}


def detect(path: Path | Sequence[str], kind: str | None = None, asked: Asked = AS_IT_IS) -> Source:
    """The adapter for ``path``, found out by looking into it or named by ``kind``; InputError for none.

    Several paths, patterns and addresses are those of WebDataset tars.
    """
    if kind is not None and kind not in SOURCES:
        raise InputError(f"--kind {kind}: unknown; allowed: {', '.join(SOURCES)}")
    if not isinstance(path, Path):
        if kind not in (None, WebDataset.kind):
            raise InputError(
                f"--kind {kind}: only {WebDataset.kind} takes several paths, patterns, addresses"
            )
        return WebDataset(path, asked)
    contents = look(path)
    for name in SOURCES if kind is None else [kind]:
        for adapter in SOURCES[name]:
            if contents.form in adapter.forms and (kind is not None or adapter.claims(contents)):
                return adapter(path, asked)
    allowed = "; ".join(f"{adapters[0].looks_like} ({name})" for name, adapters in reversed(SOURCES.items()))
    raise InputError(
        f"{path}: not a source that can be packed{f' as {kind}' if kind else ''} ({said(contents)}); "
        f"allowed: {allowed}"
    )
