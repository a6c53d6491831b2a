"""What keeps a run from being lost: stops that every rank agrees on, hangs, losses that explode, errors in
one line."""
