-- Return 1 if a delivery has its lease and the claim on its output, else 0.
-- KEYS: the claim, the index of leases. ARGV: tag.
return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('ZSCORE', KEYS[2], ARGV[1]) and 1 or 0
