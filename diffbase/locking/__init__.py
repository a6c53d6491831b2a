"""Locks: one process at a time does something, by flock or, where a mount has none, by a lease file."""
