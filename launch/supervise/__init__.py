"""What runs on the nodes: a supervisor on each starts, watches, restarts and requeues training."""
