"""Local servers and sample pictures that the demo, the benchmarks and the tests share."""
