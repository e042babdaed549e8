-- Take events that are due, and let no other sender take them for a while. Needs now.lua.
-- KEYS: the times at which events are due, the events.
-- ARGV: the seconds until events that are not removed are due again, the most events.
-- Returns {id, event, id, event, …}.
local taken = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[2])) do
    local event = redis.call('HGET', KEYS[2], id)
    if event then
        redis.call('ZADD', KEYS[1], now + ARGV[1], id)
        taken[#taken + 1] = id
        taken[#taken + 1] = event
    else
        redis.call('ZREM', KEYS[1], id)
    end
end
return taken
