"""Experiment trackers beside TensorBoard: W&B and MLflow, one run of theirs over all restarts of a run."""
