"""What a run leaves and how it is opened again: folder, checkpoints, exports, data, drawing."""
