"""Data: sources are packed into WebDataset tar shards, shards are read by every rank of a run.

Imports neither ``diffcore`` nor ``launch``.
"""
