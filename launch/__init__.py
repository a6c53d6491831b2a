"""Putting ``diffcore`` on a cluster: Slurm jobs through submitit. The only room that knows submitit."""
