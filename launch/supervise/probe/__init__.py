"""The preflight's timed all-reduce: a process a rank, started before training and gone before it begins."""
