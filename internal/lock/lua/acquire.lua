-- Takes the lock of a session and reads it.
-- KEYS: 1 the session, 2 its lock, 3 its version, 4 its queue
-- ARGV: 1 token, 2 process, 3 the queue's expiry in ms, 0 to not wait, 4 a reservation's
--       in ms, 5 the lock's in ms, 6 the version's in s, 7 the session's in s, 0 to leave
--       it, 8 how many bytes are a large value
-- Returns {value, version}: the value is 0 if it is large, and a third element says that the
-- lock was reserved for this process. Or nil: there is no such session. Or a number: what
-- taken returns. A repeat finds its own token in the lock.
local holder = redis.call("GET", KEYS[2])
local reserved = holder == ARGV[2]
if not holder then holder = handover(KEYS[2], KEYS[4], KEYS[1], ARGV[4]) end -- the last holder never released it
if holder and holder ~= ARGV[1] and holder ~= ARGV[2] then
	if redis.call("EXISTS", KEYS[1]) == 0 then return false end
	return taken(KEYS[2], KEYS[4], ARGV[2], ARGV[3])
end
-- Lua hashes each byte of a string, for which Redis, that does nothing else meanwhile, takes
-- longer than to send it.
local value = redis.call("STRLEN", KEYS[1]) > tonumber(ARGV[8]) and 0 or redis.call("GET", KEYS[1])
if not value then
	if holder and not handover(KEYS[2], KEYS[4], KEYS[1], ARGV[4]) then redis.call("DEL", KEYS[2]) end
	return false
end
redis.call("SET", KEYS[2], ARGV[1], "PX", ARGV[5])
if ARGV[7] ~= "0" then redis.call("EXPIRE", KEYS[1], ARGV[7]) end
local version = redis.call("GETEX", KEYS[3], "EX", ARGV[6])
if not version then
	version = ARGV[1] .. "?" -- nobody has written since it ran out
	redis.call("SET", KEYS[3], version, "EX", ARGV[6])
end
if reserved then return {value, version, 1} end
return {value, version}
