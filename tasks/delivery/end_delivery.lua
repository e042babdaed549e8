-- End the claim of a delivery, remove attempts, and record an error.
-- KEYS: the claim, the attempts.
-- ARGV: tag, the attempts to remove (`Removal` in attempts.py), the field of the last error, and the
-- error or ''.
redis.call('HDEL', KEYS[2], '')
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
if ARGV[2] == 'all' then redis.call('DEL', KEYS[2]) end
if ARGV[2] == 'own' then redis.call('HDEL', KEYS[2], ARGV[1]) end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[2], ARGV[3], ARGV[4]) end
