"""Whether a packed folder is what its index says, and single damaged files made again."""
