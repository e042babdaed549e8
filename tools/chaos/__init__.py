"""The chaos test: the whole stack under load, with killed workers, a killed Redis and S3 faults."""
