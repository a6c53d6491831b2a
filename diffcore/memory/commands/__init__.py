"""What ``python -m diffcore.memory`` does, a file per command."""
