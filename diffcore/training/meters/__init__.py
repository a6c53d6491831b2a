"""What a run measures of itself as it goes: loss by noise level, parts of a step, the ranks' pace, costs."""
