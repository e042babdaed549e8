"""Evaluations of detectors: what they find, what stays exposed, and the report of it."""
