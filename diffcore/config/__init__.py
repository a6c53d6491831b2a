"""The settings of a run: the typed tree, the YAML and the flags that fill it, and DeepSpeed's JSON."""
