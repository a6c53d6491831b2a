"""The WebDataset tars of others: where they lie, their samples, and what their fields say."""
