"""What became of jobs: states, logs, and where the time went, read from run folders and Slurm."""
