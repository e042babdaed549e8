"""The demo: Redis, S3, a worker and Flower on this machine, and real photographs."""
