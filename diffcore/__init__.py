"""The diffusion core: models, equations, training, sampling and memory anatomy.

Imports ``shards``, never ``launch``.
"""
