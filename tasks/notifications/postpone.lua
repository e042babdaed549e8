-- Let an event be due again after a pause, unless it was removed. Needs now.lua.
-- KEYS: the times at which events are due. ARGV: the seconds of the pause, then ids.
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], ARGV[i]) end
