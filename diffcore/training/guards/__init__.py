"""What keeps a run from being lost: agreed stops, hangs, losses that explode, errors in one line."""
