-- Note a delivery before its work begins.
-- KEYS: notes, index. ARGV: tag, note, time, seconds. Returns 0 if the tag is no longer in hand.
redis.call('HDEL', KEYS[1], ARGV[1])
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSETNX', KEYS[1], 'first', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
