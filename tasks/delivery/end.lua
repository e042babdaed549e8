-- End the turn of a delivery.
-- KEYS: turn, notes. ARGV: tag; 'all', 'mine' or 'none' of the notes to remove; an error to note, or ''.
redis.call('HDEL', KEYS[2], '')
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
if ARGV[2] == 'all' then redis.call('DEL', KEYS[2]) end
if ARGV[2] == 'mine' then redis.call('HDEL', KEYS[2], ARGV[1]) end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], 'error', ARGV[3]) end
