"""Bulk commands: comparison, backfill and verification of whole buckets."""
