"""Code that writes documentation."""
