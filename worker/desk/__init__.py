"""The review desk: pages on which people decide on pictures and mark samples."""
