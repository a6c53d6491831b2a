"""Shards that are not on this node: fetched from a URL into a cache that its processes share."""
