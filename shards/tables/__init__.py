"""The files of an index beside index.json: rows and lists of shards, read by parts, written in a stream."""
