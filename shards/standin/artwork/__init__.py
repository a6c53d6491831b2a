"""Artwork of the stand-in for Google's Cartoon Set: flat vector avatars with the same 18 attributes.

A stand-in, not a copy: the drawing is this project's own and only the schema, the file names, the canvas
and the framing are the published ones. To train on Google's avatars (CC BY 4.0) point the packer at the
official ``cartoonset10k.tgz``, ``cartoonset100k.tgz`` or an unpacked folder; nothing here is needed then.

One file per concern. ``palette``, ``geometry`` and ``hair_styles`` are plain numbers and import no skia, so
that a reader of the pictures can use them; ``avatar`` puts the drawing modules together.
"""

from shards.standin.artwork.hair_styles import BALD_HAIR

__all__ = ["ARTWORK_VERSION", "BALD_HAIR"]

# Raised whenever the same labels would give other pixels; a folder drawn by another version is refused.
ARTWORK_VERSION = 2
