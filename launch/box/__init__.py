"""A real Slurm on one machine, to try the launcher with: its conf, daemons and processes."""
