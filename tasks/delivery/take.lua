-- Take one message from the first list that has one. Needs now.lua.
-- KEYS: the messages in hand, their index, then the lists of the queues, by priority.
-- ARGV: a new tag, the lease in seconds, the queue's name for each list, and optionally the most
-- bytes of a message.
-- Returns the queue and the message; of a message that is too large, its end and its size.
for i = 3, #KEYS do
    local message = redis.call('RPOP', KEYS[i])
    if message then
        redis.call('HSET', KEYS[1], ARGV[1], '[' .. message .. ',"","' .. ARGV[i] .. '"]')
        redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
        local most = tonumber(ARGV[#KEYS + 1])
        if most and #message > most then return {ARGV[i], string.sub(message, -most), #message} end
        return {ARGV[i], message}
    end
end
