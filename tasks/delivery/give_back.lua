-- Put the messages of some tags back. Needs restore.lua.
-- KEYS: the messages in hand, their index. ARGV: tags.
for _, tag in ipairs(ARGV) do restore(tag) end
