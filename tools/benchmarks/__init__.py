"""The benchmarks of ``make bench``: JSON lines on standard output, tables on standard error."""
