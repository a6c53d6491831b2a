"""The preflight's timed all-reduce, in a fork of each rank's process, which trains after it."""
