"""Delivery: messages travel through Redis, each under a lease, until they are acknowledged."""
