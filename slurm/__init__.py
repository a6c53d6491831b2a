"""``profiles``: the clusters' settings; ``box.py``: a small Slurm on one machine to try the launcher with."""
