-- Put leased messages back on their queues, and remove attempts. Needs restore.lua.
-- KEYS: the leased messages, the index of leases, then attempts.
-- ARGV: the tag of each of the attempts, then tags. Tags may be repeated.
for i = 3, #KEYS do redis.call('HDEL', KEYS[i], ARGV[i - 2]) end
for _, tag in ipairs(ARGV) do restore(tag) end
