"""S3 objects, and the receipts that are stored beside them."""
