"""What is asked for: flags, the cluster's profile, the job's size and sweep, checked before anything is made."""
