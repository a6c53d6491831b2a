"""Judging samples: reading colours back, attribute accuracy, distances between distributions."""
