"""Code that generates parts of the documentation and its site."""
