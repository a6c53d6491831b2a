"""Is this machine fit to train on? One line a check, without anything private, for people and bug reports."""
