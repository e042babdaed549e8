-- The time by Redis's clock, so that the clocks of workers need not agree.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
