"""The preview: a random sample of sources, anonymized in memory, as a sheet to look at."""
