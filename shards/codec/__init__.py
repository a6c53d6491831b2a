"""Images and labels as bytes and back: PNG, WebP and raw pixels, and the resize."""

ENCODINGS = ("png", "webp", "npy")
"""What a packed image may be; an index names one of them. Here, because a command line needs no numpy."""
