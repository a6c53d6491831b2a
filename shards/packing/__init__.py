"""From a source to tar shards and an index, whole and resumable; and the check that they are sound."""
