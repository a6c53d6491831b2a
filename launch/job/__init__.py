"""A job before it is handed over: its folder in the run, its code, its sbatch file, its entry in lists."""
