"""A small Slurm on one machine, to try the launcher with; ``profiles`` holds the clusters' settings."""
