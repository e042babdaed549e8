-- Renew leases. Needs now.lua.
-- KEYS: the index of leases. ARGV: the lease in seconds, then tags. Returns the tags without a lease.
local lost = {}
for i = 2, #ARGV do
    if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then
        redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i])
    else
        lost[#lost + 1] = ARGV[i]
    end
end
return lost
