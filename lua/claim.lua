-- Marks an ID that has no record as replaced, for the first who does so. A repeat finds its
-- own token.
-- KEYS: 1 the renewal marker
-- ARGV: 1 token, 2 the marker's expiry in seconds
-- Returns 1, or 0 if somebody else was first
local by = redis.call("GET", KEYS[1])
if by then return by == ARGV[1] and 1 or 0 end
redis.call("SET", KEYS[1], ARGV[1], "EX", ARGV[2])
return 1
