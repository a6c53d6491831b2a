"""What a run leaves and how it is opened again: its folder, checkpoints, exports, data, and drawing with
it."""
