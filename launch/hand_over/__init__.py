"""Handing a job to Slurm, to an allocation that is there already, or to this machine."""
