"""Judging what a run draws: fidelity, distances, diversity; and studies of many runs."""
