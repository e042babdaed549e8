-- Record an entry in place of the one that was read, unless a worker has recorded another since.
-- KEYS: the ledger. ARGV: its name, the entry as it was read, the new one.
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
return 0
