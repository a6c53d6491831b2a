"""DeepSpeed behind one class: the wrapped network, its states by name, their average, and the ranks."""
