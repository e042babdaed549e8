"""Masking: which regions of a picture are hidden, and with what."""
