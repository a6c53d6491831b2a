"""What is asked for: the flags, the cluster's profile, the job's size and sweep, checked before anything is
made."""
