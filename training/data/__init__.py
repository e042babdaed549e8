"""Data sets: labelled pictures read, checked, and kept in one form."""
