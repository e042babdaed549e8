"""TIFF: its directories, the checks of its pages, and camera raws, which are TIFFs as well."""
