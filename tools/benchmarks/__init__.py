"""What ``make bench`` runs: one JSON object a line on standard output, a table on standard error."""
