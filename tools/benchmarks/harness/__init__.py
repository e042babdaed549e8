"""Common parts of the benchmarks: processes, pictures, and figures of the machine."""
