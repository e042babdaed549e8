"""Detection: from pixels to faces."""
