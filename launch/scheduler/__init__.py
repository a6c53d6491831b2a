"""Slurm: every command of it that is called, and what its answers mean."""
