"""Indexes of other people's tars, which stay as they are: made, and held against what is there."""
