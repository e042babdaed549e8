"""Notifications: each outcome of a picture as a CloudEvent to a webhook, SQS or SNS."""
