"""What runs on the nodes: a supervisor per rank that starts, watches, restarts and requeues the training
process."""
