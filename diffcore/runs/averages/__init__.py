"""Power-function averages of a run: their snapshots, and averages of any width made of them."""
