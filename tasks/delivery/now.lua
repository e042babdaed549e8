-- The time of Redis's clock, so that the clocks of workers may differ.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
