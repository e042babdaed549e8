-- Put messages back whose leases have expired. Needs restore.lua and now.lua.
-- KEYS: the leased messages, the index of leases. ARGV: the most to put back. Returns their number.
local tags = redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, tag in ipairs(tags) do restore(tag) end
return #tags
