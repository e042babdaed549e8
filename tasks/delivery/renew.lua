-- Renew leases. Needs now.lua.
-- The first write needs no memory (see lua.py).
-- KEYS: the index of leases. ARGV: the lease in seconds, then tags. Returns the tags without a lease.
local lost = {}
redis.call('ZREM', KEYS[1], '')
for i = 2, #ARGV do
    if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
        redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i])
    else
        lost[#lost + 1] = ARGV[i]
    end
end
return lost
