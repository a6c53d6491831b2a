"""Damaged and hostile input by the thousand, for everything that reads what came from outside.

``targets/`` has one file a kind of input: whole examples of it, and the code that reads it. ``mutate``
damages an example, ``play`` feeds it and watches. ``benchmarks/fuzz.py`` runs it; ``tests/corpora/KIND/``
keeps what once was answered wrongly, and ``tests/unit/test_fuzz.py`` feeds all of it again.
"""
