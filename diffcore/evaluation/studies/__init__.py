"""Experiments over many settings or runs: findings, guidance and samplers, curves, visibility."""
