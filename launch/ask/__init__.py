"""What is asked for: flags, cluster profile, size, sweep; checked before anything is made."""
