"""A checkpoint as it lies on the disk: what its folder says, and its tensors."""
