"""Gradients between backward and the optimizer: averaged over the ranks, measured, found finite or not."""
