"""JPEG: segments, strict decoding, and blocks that keep their coefficients."""
