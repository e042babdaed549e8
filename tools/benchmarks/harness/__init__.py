"""What the benchmarks share: processes, pictures, and figures of the machine."""
