"""From a position of the stream to a sample's number: keyed permutations, canonical streams."""
