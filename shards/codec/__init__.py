"""Images and labels as bytes and back: PNG, WebP, raw pixels, JPEGs that are kept, and the resize."""

ENCODINGS = ("png", "webp", "npy")
"""What an image may be packed as. Here, because a command line needs no numpy."""
KEEP, KEPT = "keep", "jpg"
"""JPEGs that stay as they are, on the command line; the encoding that an index names, and members' suffix."""
STORED = (*ENCODINGS, KEPT)
"""What an index of packed images may name."""
