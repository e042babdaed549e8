"""Masking: the regions of a picture that are hidden, and the methods that fill them."""
