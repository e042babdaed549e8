"""The demonstration: real Redis, real S3, a worker and Flower on this machine, and real photographs."""
