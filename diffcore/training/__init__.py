"""Training a run: the loop, its data, what it watches and what guards it."""
