"""Muon: which weights are matrices, where they lie, and their updates orthogonalized by all ranks."""
