"""Commands on whole buckets: backfill, reconcile and verify."""
