"""What ``make chaos`` runs: the whole stack under a load, while workers and Redis are killed and S3 misbehaves."""
