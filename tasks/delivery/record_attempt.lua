-- Record the attempt of a delivery before its work begins.
-- KEYS: the attempts, the index of leases.
-- ARGV: tag, attempt, time, seconds after which the attempts expire, the field of the first time.
-- Returns 0 if the delivery has no lease, else 1.
redis.call('HDEL', KEYS[1], ARGV[1])
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSETNX', KEYS[1], ARGV[5], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
