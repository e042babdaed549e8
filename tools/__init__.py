"""Tools of the developers: demo, benchmarks, chaos test, and the servers that they share."""
