"""What a run is told: the typed tree, the YAML and the flags that fill it, and DeepSpeed's JSON."""
