-- Put leased messages back on their queues. Needs restore.lua.
-- KEYS: the leased messages, the index of leases. ARGV: tags.
for _, tag in ipairs(ARGV) do restore(tag) end
