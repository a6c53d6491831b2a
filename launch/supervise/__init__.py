"""What runs on the nodes: a supervisor per rank starts, watches, restarts and requeues training."""
