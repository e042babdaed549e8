"""Uploads: events of a store, and listings of it, become messages on the queue."""
