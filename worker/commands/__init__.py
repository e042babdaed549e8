"""The commands of ``veil``, one module each, and what they share."""
