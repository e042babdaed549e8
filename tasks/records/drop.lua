-- Remove an entry unless it has changed since it was read: a worker may have recorded a newer one.
-- KEYS: the ledger. ARGV: its name, the entry as it was read. Returns the number of removed entries.
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
    return redis.call('HDEL', KEYS[1], ARGV[1])
end
return 0
