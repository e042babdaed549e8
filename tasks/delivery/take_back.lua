-- Put messages back whose leases have run out. Needs restore.lua and now.lua.
-- KEYS: the messages in hand, their index. ARGV: the most to put back. Returns their number.
local tags = redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, tag in ipairs(tags) do restore(tag) end
return #tags
