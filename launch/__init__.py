"""Putting ``diffcore`` on a cluster: Slurm jobs through submitit. The only package that imports submitit."""
