-- Record an entry in place of the one that was read, unless a worker has recorded another since.
-- Another version of Veil may have recorded it, with fewer or further fields: the fields that both
-- have are compared.
-- KEYS: the ledger. ARGV: its name, the entry as it was read, the new one.
local function is_same(one, other)
    if type(one) ~= 'table' or type(other) ~= 'table' then
        return one == other
    end
    for name, value in pairs(one) do
        if not is_same(value, other[name]) then
            return false
        end
    end
    for name in pairs(other) do
        if one[name] == nil then
            return false
        end
    end
    return true
end

-- cjson reads no lone surrogates, which the options of a message may have.
local function is_unchanged(stored, read)
    if stored == read then
        return true
    end
    local are_read, present, before = pcall(function()
        return cjson.decode(stored), cjson.decode(read)
    end)
    if not are_read then
        return false
    end
    for name, value in pairs(present) do
        if before[name] ~= nil and not is_same(value, before[name]) then
            return false
        end
    end
    return true
end

local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored and is_unchanged(stored, ARGV[2]) then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
return 0
