"""Random samples of an archive, and what they say about the whole of it."""
