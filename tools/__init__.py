"""Tools of the project's developers: the demo, the benchmarks, the chaos test, and the servers that they share."""
