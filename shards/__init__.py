"""Data: sources are packed into WebDataset tar shards, shards are read by every rank of a run.

The lowest room of the house: nothing here imports ``diffcore`` or ``launch``.
"""
