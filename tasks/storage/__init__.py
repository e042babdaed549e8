"""Storage: objects in S3, and the receipts beside them."""
