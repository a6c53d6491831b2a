"""A step's memory predicted: traced on fake tensors, placed inside DeepSpeed, given to CUDA's allocator."""
