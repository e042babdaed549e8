-- Return 1 while a delivery is in hand and has the turn of its output, else 0.
-- KEYS: turn, index. ARGV: tag.
return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('ZSCORE', KEYS[2], ARGV[1]) and 1 or 0
