"""The commands of ``veil``, one module each."""
