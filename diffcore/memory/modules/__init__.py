"""Memory plans of any ``nn.Module``: its own training loop, run on fake tensors."""
