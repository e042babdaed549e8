-- Claim an output for a delivery, and read the attempts of earlier deliveries.
-- KEYS: the claim, the attempts, the index of leases.
-- ARGV: tag, seconds after which the claim expires, the fields of the first time and the last error.
-- Returns {-1} if the delivery has no lease, and {0} if another delivery with a lease has the claim;
-- else {1, first time, last error}, followed by the attempts of deliveries that died.
redis.call('ZREM', KEYS[3], '')
if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then return {-1} end
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] and redis.call('ZSCORE', KEYS[3], owner) then return {0} end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local first_time = redis.call('HGET', KEYS[2], ARGV[3]) or ''
local last_error = redis.call('HGET', KEYS[2], ARGV[4]) or ''
local result = {1, first_time, last_error}
local attempts = redis.call('HGETALL', KEYS[2])
for i = 1, #attempts, 2 do
    local field = attempts[i]
    local is_tag = field ~= ARGV[3] and field ~= ARGV[4]
    if is_tag and field ~= ARGV[1] and not redis.call('ZSCORE', KEYS[3], field) then
        result[#result + 1] = attempts[i + 1]
    end
end
return result
