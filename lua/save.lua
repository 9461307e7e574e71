-- Writes a session that has an owner: the index first, and the session only if that
-- succeeded.
-- KEYS: 1 the session, 2 its owner's index
-- ARGV: 1 session ID, 2 seconds in the index, 3 "create", "overwrite" or "expire",
--       4 the session's expiry in seconds, 5 its value
-- Returns 1, or 0 if there was no session to overwrite or expire
if ARGV[3] ~= "create" and redis.call("EXISTS", KEYS[1]) == 0 then
	redis.pcall("ZREM", KEYS[2], ARGV[1])
	return 0
end
remember(KEYS[2], ARGV[1], tonumber(ARGV[2]))
if ARGV[3] == "expire" then
	redis.call("EXPIRE", KEYS[1], ARGV[4])
else
	redis.call("SET", KEYS[1], ARGV[5], "EX", ARGV[4])
end
return 1
